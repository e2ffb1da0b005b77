/* A module in C without a library: it adds up. accumulator.wat is the same by hand.
 *
 * command  decimal digits: added; the reply is the sum, in digits, which is an event too
 * query    anything: the sum, in digits
 * refused  a command that is not one to twenty digits, or more than 64 bits
 * panics   when the sum would overflow 64 bits
 * snapshot the sum, 8 bytes little-endian
 */
#include "statehouse.h"

static uint64_t sum;

/* The argument of the call in progress; commands are short, so there is no allocator. */
static uint8_t input[1024];
/* The digits of the last result. */
static char digits[20];

void statehouse_abi_1(void) {}

void *statehouse_alloc(uint32_t length) { return length <= sizeof input ? input : 0; }

static statehouse_result sum_in_digits(void) {
    uint32_t at = sizeof digits;
    uint64_t rest = sum;
    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest != 0);
    return statehouse_reply(digits + at, sizeof digits - at);
}

statehouse_result statehouse_init(const uint8_t *argument, uint32_t length) {
    (void)argument, (void)length;
    sum = 0;
    return STATEHOUSE_EMPTY;
}

statehouse_result statehouse_apply(const uint8_t *argument, uint32_t length) {
    uint32_t count;
    const uint8_t *command = statehouse_payload(argument, length, &count);
    uint64_t number = 0;
    if (count == 0 || count > 20)
        return STATEHOUSE_REJECT("a command is a decimal number");
    for (uint32_t i = 0; i < count; i++) {
        uint64_t digit = (uint64_t)command[i] - '0';
        if (digit > 9)
            return STATEHOUSE_REJECT("a command is a decimal number");
        if (number > (UINT64_MAX - digit) / 10)
            return STATEHOUSE_REJECT("a command is a decimal number");
        number = number * 10 + digit;
    }
    if (sum + number < sum) {
        static const char overflow[] = "the sum would overflow";
        statehouse_fail(overflow, sizeof overflow - 1);
    }
    sum += number;
    statehouse_result reply = sum_in_digits();
    statehouse_emit((const void *)(uintptr_t)(reply >> 32), (uint32_t)reply);
    return reply;
}

statehouse_result statehouse_query(const uint8_t *argument, uint32_t length) {
    (void)argument, (void)length;
    return sum_in_digits();
}

statehouse_result statehouse_snapshot(void) {
    statehouse_write(&sum, sizeof sum);
    return STATEHOUSE_EMPTY;
}

statehouse_result statehouse_restore(void) {
    uint64_t read_sum;
    uint8_t more;
    uint32_t have = 0;
    while (have < sizeof read_sum) {
        uint32_t got = statehouse_read((uint8_t *)&read_sum + have, (uint32_t)sizeof read_sum - have);
        if (got == 0)
            return STATEHOUSE_REJECT("a snapshot is 8 bytes");
        have += got;
    }
    if (statehouse_read(&more, 1) != 0)
        return STATEHOUSE_REJECT("a snapshot is 8 bytes");
    sum = read_sum;
    return STATEHOUSE_EMPTY;
}
