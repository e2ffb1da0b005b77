/* Statehouse ABI 1 for C. Freestanding: no libc, no allocator, one header. docs/abi.md is the text.
 *
 *   clang --target=wasm32 -O2 -nostdlib -ffreestanding -Wl,--no-entry -I guest-sdk/include \
 *         -o module.wasm module.c
 *
 * A module defines the functions of the section "exports" below and may call those of "imports".
 * tests/modules/accumulator.c is a complete one.
 *
 * The compiler may turn loops into calls of memcpy, memset or memmove: add -mbulk-memory, or define them.
 */
#ifndef STATEHOUSE_H
#define STATEHOUSE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define STATEHOUSE_NORETURN [[noreturn]]
#define STATEHOUSE_ASSERT static_assert
#else
#define STATEHOUSE_NORETURN _Noreturn
#define STATEHOUSE_ASSERT _Static_assert
#endif

/* ---- the call header ------------------------------------------------------------------------- */

/* In front of the payload of every call that has an argument. Little-endian, as wasm32 is. */
typedef struct {
    uint32_t header_len; /* the payload begins here; 48 in ABI 1, more from later hosts */
    uint32_t flags;      /* 0; for adapters: 1, the group has a leader, 2, it is this node */
    uint64_t index;      /* the entry's index in the group's log */
    uint64_t time_ms;    /* the entry's time, Unix milliseconds; never goes back */
    uint64_t seed_low;   /* 128 random bits, the same on every replica */
    uint64_t seed_high;
    uint64_t session; /* the client session that asks or that ended; 0 for none */
} statehouse_header;

STATEHOUSE_ASSERT(sizeof(statehouse_header) == 48, "ABI 1 has a header of 48 bytes");

/* The header of an argument, wherever the argument lies. */
static inline statehouse_header statehouse_header_of(const uint8_t *argument) {
    statehouse_header header;
    __builtin_memcpy(&header, argument, sizeof header);
    return header;
}

/* The payload of an argument of `length` bytes, and its length. */
static inline const uint8_t *statehouse_payload(const uint8_t *argument, uint32_t length,
                                                uint32_t *payload_length) {
    uint32_t header_len;
    __builtin_memcpy(&header_len, argument, sizeof header_len);
    *payload_length = length - header_len;
    return argument + header_len;
}

/* ---- results --------------------------------------------------------------------------------- */

/* What the calls return: bits 63..32 the pointer, bit 31 "rejected", bits 30..0 the length. The bytes stay
 * as they are until the next call into the module. */
typedef uint64_t statehouse_result;

/* Success without bytes. */
#define STATEHOUSE_EMPTY ((statehouse_result)0)

/* A reply or an answer. */
static inline statehouse_result statehouse_reply(const void *bytes, uint32_t length) {
    return (uint64_t)(uintptr_t)bytes << 32 | (length & 0x7fffffffu);
}

/* A refusal, with UTF-8 text for the caller. Nothing that matters has been changed. */
static inline statehouse_result statehouse_reject(const char *text, uint32_t length) {
    return (uint64_t)(uintptr_t)text << 32 | 0x80000000u | (length & 0x7fffffffu);
}

/* A refusal with a string literal. */
#define STATEHOUSE_REJECT(literal) statehouse_reject("" literal, sizeof(literal) - 1)

/* ---- exports: what a module defines ----------------------------------------------------------- */

#define STATEHOUSE_EXPORT(name) __attribute__((export_name(#name)))

/* Required. The marker; called once after instantiation, before all others. */
STATEHOUSE_EXPORT(statehouse_abi_1) void statehouse_abi_1(void);
/* Required. Room for `length` bytes (1 or more) for the argument of the next call; 0: out of memory. */
STATEHOUSE_EXPORT(alloc) void *statehouse_alloc(uint32_t length);
/* Required. A new group's state; the payload is its params, a JSON object. A reply is empty. */
STATEHOUSE_EXPORT(init) statehouse_result statehouse_init(const uint8_t *argument, uint32_t length);
/* Required. The payload is a command, the result its reply. */
STATEHOUSE_EXPORT(apply) statehouse_result statehouse_apply(const uint8_t *argument, uint32_t length);
/* Required. The payload is a query, the result its answer. Must not change anything. */
STATEHOUSE_EXPORT(query) statehouse_result statehouse_query(const uint8_t *argument, uint32_t length);
/* Required. Writes the whole state with statehouse_write. */
STATEHOUSE_EXPORT(snapshot) statehouse_result statehouse_snapshot(void);
/* Required. Replaces the state by what statehouse_read gives, up to its end. */
STATEHOUSE_EXPORT(restore) statehouse_result statehouse_restore(void);

/* Optional: exported if the module defines them. The payload of timer is the id, 8 bytes; session_end has
 * none, the session is in the header; migrate has none either. A module that calls statehouse_set_timer must define timer. */
#define STATEHOUSE_TIMER                                                                          \
    STATEHOUSE_EXPORT(timer) statehouse_result statehouse_timer
#define STATEHOUSE_SESSION_END                                                                    \
    STATEHOUSE_EXPORT(session_end) statehouse_result statehouse_session_end
#define STATEHOUSE_MIGRATE                                                                        \
    STATEHOUSE_EXPORT(migrate) statehouse_result statehouse_migrate
/* An adapter: both or none. The payload of adapter_open is its settings, a JSON object; that of adapter_step
 * records of what happened. Both answer records of what is asked. docs/abi.md, section 9. */
#define STATEHOUSE_ADAPTER_OPEN                                                                   \
    STATEHOUSE_EXPORT(adapter_open) statehouse_result statehouse_adapter_open
#define STATEHOUSE_ADAPTER_STEP                                                                   \
    STATEHOUSE_EXPORT(adapter_step) statehouse_result statehouse_adapter_step

/* Kinds of the records: length u32 (of what follows it), kind u8, fields. */
enum {
    STATEHOUSE_OPENED = 1,       /* connection u64, peer text */
    STATEHOUSE_DATA = 2,         /* connection u64, bytes */
    STATEHOUSE_CLOSED = 3,       /* connection u64 */
    STATEHOUSE_APPLIED = 4,      /* token u64, index u64, outcome */
    STATEHOUSE_ANSWERED = 5,     /* token u64, index u64, outcome */
    STATEHOUSE_EVENT = 6,        /* index u64, time_ms u64, bytes */
    STATEHOUSE_SESSION = 7,      /* token u64, index u64, outcome: id, attachment, timeout_ms u64, secret 16 */
    STATEHOUSE_SESSION_LOST = 8, /* session u64, attachment u64, index u64, why u8: 1 ended, 2 moved */
    STATEHOUSE_TIMER_DUE = 9,    /* id u64 */
    STATEHOUSE_TOLD = 10         /* token u64, outcome */
};
/* An outcome is one of these u8, and then bytes, or text. */
enum {
    STATEHOUSE_OK = 0,
    STATEHOUSE_REJECTED = 1,
    STATEHOUSE_TRAPPED = 2,
    STATEHOUSE_FAILED = 3 /* "code: detail" */
};
enum {
    STATEHOUSE_SEND = 1,           /* connection u64, bytes */
    STATEHOUSE_CLOSE = 2,          /* connection u64 */
    STATEHOUSE_PROPOSE = 3,        /* token u64, session u64 or 0, command */
    STATEHOUSE_ASK_STATE = 4,      /* token u64, session u64 or 0, 0 local 1 lease 2 linearizable u8, query */
    STATEHOUSE_OPEN_SESSION = 5,   /* token u64, timeout_ms u64 */
    STATEHOUSE_ATTACH_SESSION = 6, /* token u64, session u64, secret 16 */
    STATEHOUSE_TOUCH = 7,          /* session u64 */
    STATEHOUSE_CLOSE_SESSION = 8,  /* token u64, session u64 */
    STATEHOUSE_SET_TIMER = 9,      /* id u64, at_ms u64 */
    STATEHOUSE_CLEAR_TIMER = 10,   /* id u64 */
    STATEHOUSE_ASK_HOST = 11,      /* token u64, what text */
    STATEHOUSE_HOLD = 12           /* connection u64, hold u8 */
};

/* ---- imports: what a module may call ---------------------------------------------------------- */

#define STATEHOUSE_IMPORT(name)                                                                   \
    __attribute__((import_module("statehouse"), import_name(#name)))

/* In init, apply, timer, session_end only; a trap elsewhere: */

/* An event of this entry. In init: reaches nobody. */
STATEHOUSE_IMPORT(emit) void statehouse_emit(const void *bytes, uint32_t length);
/* Sets timer `id`, or moves it, to the first entry whose time is `at_ms` or later. */
STATEHOUSE_IMPORT(set_timer) void statehouse_set_timer(uint64_t id, uint64_t at_ms);
/* Forgets timer `id`, if it is set. */
STATEHOUSE_IMPORT(clear_timer) void statehouse_clear_timer(uint64_t id);

/* Anywhere: */

enum { STATEHOUSE_ERROR = 1, STATEHOUSE_WARN = 2, STATEHOUSE_INFO = 3, STATEHOUSE_DEBUG = 4 };
/* A line of UTF-8 for the node's log, which may drop it. */
STATEHOUSE_IMPORT(log) void statehouse_log(int32_t level, const char *text, uint32_t length);
/* Ends the call as a trap with this UTF-8 text: a panic. The state is put back. Does not return. */
STATEHOUSE_NORETURN STATEHOUSE_IMPORT(fail) void statehouse_fail(const char *text, uint32_t length);

/* In snapshot only: appends to the snapshot. */
STATEHOUSE_IMPORT(write) void statehouse_write(const void *bytes, uint32_t length);
/* In restore and migrate only: the next bytes of the snapshot, up to `length`; 0 at its end. */
STATEHOUSE_IMPORT(read) uint32_t statehouse_read(void *bytes, uint32_t length);

#ifdef __cplusplus
}
#endif

#endif
