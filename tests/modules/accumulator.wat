;; accumulator.c by hand: it adds up. The tests load this one, so that they need no C compiler.
;;
;; command  decimal digits: added; the reply is the sum, in digits, which is an event too
;; query    anything: the sum, in digits
;; refused  a command that is not one to twenty digits, or more than 64 bits
;; panics   when the sum would overflow 64 bits
;; snapshot the sum, 8 bytes little-endian
;;
;; Memory: 0 the sum (8 bytes), 8 scratch (8), 16..36 the digits, 64.. texts, 1024..2048 the argument.
(module
  (import "statehouse" "emit" (func $emit (param i32 i32)))
  (import "statehouse" "fail" (func $fail (param i32 i32)))
  (import "statehouse" "write" (func $write (param i32 i32)))
  (import "statehouse" "read" (func $read (param i32 i32) (result i32)))

  (memory (export "memory") 1)
  (data (i32.const 64) "a command is a decimal number")  ;; 29 bytes
  (data (i32.const 128) "the sum would overflow")        ;; 22 bytes
  (data (i32.const 192) "a snapshot is 8 bytes")         ;; 21 bytes

  ;; The result word of a reply: pointer in the high half, length in the low one.
  (func $reply (param $pointer i32) (param $length i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $pointer)) (i64.const 32))
      (i64.extend_i32_u (local.get $length))))

  ;; The same with bit 31: a rejection.
  (func $reject (param $pointer i32) (param $length i32) (result i64)
    (i64.or (call $reply (local.get $pointer) (local.get $length)) (i64.const 0x80000000)))

  (func $not_a_number (result i64) (call $reject (i32.const 64) (i32.const 29)))
  (func $not_a_snapshot (result i64) (call $reject (i32.const 192) (i32.const 21)))

  ;; Writes the sum's digits so that they end at 36, last one first.
  (func $sum_in_digits (result i64)
    (local $at i32) (local $rest i64)
    (local.set $at (i32.const 36))
    (local.set $rest (i64.load (i32.const 0)))
    (loop $digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i64.store8 (local.get $at)
        (i64.add (i64.const 48) (i64.rem_u (local.get $rest) (i64.const 10))))
      (local.set $rest (i64.div_u (local.get $rest) (i64.const 10)))
      (br_if $digit (i64.ne (local.get $rest) (i64.const 0))))
    (call $reply (local.get $at) (i32.sub (i32.const 36) (local.get $at))))

  (func (export "statehouse_abi_1"))

  (func (export "alloc") (param $length i32) (result i32)
    (select (i32.const 1024) (i32.const 0) (i32.le_u (local.get $length) (i32.const 1024))))

  (func (export "init") (param i32 i32) (result i64)
    (i64.store (i32.const 0) (i64.const 0))
    (i64.const 0))

  (func (export "apply") (param $argument i32) (param $length i32) (result i64)
    (local $at i32) (local $end i32) (local $digit i64) (local $number i64) (local $result i64)
    (local.set $end (i32.add (local.get $argument) (local.get $length)))
    ;; The payload begins header_len bytes into the argument.
    (local.set $at (i32.add (local.get $argument) (i32.load (local.get $argument))))
    (if (i32.eq (local.get $at) (local.get $end)) (then (return (call $not_a_number))))
    (if (i32.gt_u (i32.sub (local.get $end) (local.get $at)) (i32.const 20))
      (then (return (call $not_a_number))))
    (loop $next
      ;; What is below '0' wraps and is above 9 too.
      (local.set $digit (i64.sub (i64.load8_u (local.get $at)) (i64.const 48)))
      (if (i64.gt_u (local.get $digit) (i64.const 9)) (then (return (call $not_a_number))))
      (if (i64.gt_u (local.get $number)
            (i64.div_u (i64.sub (i64.const -1) (local.get $digit)) (i64.const 10)))
        (then (return (call $not_a_number))))
      (local.set $number
        (i64.add (i64.mul (local.get $number) (i64.const 10)) (local.get $digit)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.set $number (i64.add (local.get $number) (i64.load (i32.const 0))))
    (if (i64.lt_u (local.get $number) (i64.load (i32.const 0)))
      (then (call $fail (i32.const 128) (i32.const 22)) unreachable))
    (i64.store (i32.const 0) (local.get $number))
    (local.set $result (call $sum_in_digits))
    (call $emit
      (i32.wrap_i64 (i64.shr_u (local.get $result) (i64.const 32)))
      (i32.wrap_i64 (local.get $result)))
    (local.get $result))

  (func (export "query") (param i32 i32) (result i64)
    (call $sum_in_digits))

  (func (export "snapshot") (result i64)
    (call $write (i32.const 0) (i32.const 8))
    (i64.const 0))

  ;; Reads into the scratch bytes, so that the sum stays if the snapshot is refused. A read may give less
  ;; than was asked.
  (func (export "restore") (result i64)
    (local $have i32) (local $got i32)
    (loop $more
      (local.set $got
        (call $read
          (i32.add (i32.const 8) (local.get $have))
          (i32.sub (i32.const 8) (local.get $have))))
      (if (i32.eqz (local.get $got)) (then (return (call $not_a_snapshot))))
      (local.set $have (i32.add (local.get $have) (local.get $got)))
      (br_if $more (i32.lt_u (local.get $have) (i32.const 8))))
    (if (call $read (i32.const 16) (i32.const 1)) (then (return (call $not_a_snapshot))))
    (i64.store (i32.const 0) (i64.load (i32.const 8)))
    (i64.const 0))
)
