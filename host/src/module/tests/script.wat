(module
  (import "statehouse" "emit" (func $emit (param i32 i32)))
  (import "statehouse" "set_timer" (func $set_timer (param i64 i64)))
  (import "statehouse" "fail" (func $fail (param i32 i32)))
  (import "statehouse" "log" (func $log (param i32 i32 i32)))
  (import "statehouse" "write" (func $write (param i32 i32)))
  (import "statehouse" "read" (func $read (param i32 i32) (result i32)))
  ;; 0..64 results, 64..128 texts, 1024.. the buffer of alloc, 64 KiB.. scratch pages
  (memory (export "memory") 3)
  (data (i32.const 64) "out of cheese")
  (global $counter (mut i64) (i64.const 0))
  (global $unused (mut f64) (f64.const 1.5))
  (func (export "statehouse_abi_1") (i32.store8 (i32.const 100) (i32.const 7)))
  (func (export "alloc") (param $len i32) (result i32)
    (if (i32.gt_u (local.get $len) (i32.const 60000)) (then (return (i32.const 0))))
    (i32.const 1024))
  (func (export "init") (param i32 i32) (result i64)
    (if (i32.eq (i32.load8_u (i32.add (local.get 0) (i32.const 48))) (i32.const 88)) ;; 'X'
      (then (return (call $rejected (i32.const 64) (i32.const 13)))))
    (i64.const 0))

  (func $reply (param $value i64) (result i64)
    (i64.store (i32.const 8) (local.get $value))
    (i64.or (i64.shl (i64.const 8) (i64.const 32)) (i64.const 8)))
  (func $rejected (param $at i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (i32.or (local.get $len) (i32.const 0x80000000)))))

  (func $scribble (param $byte i32)
    (global.set $counter (i64.const 99999))
    (memory.fill (i32.const 65536) (local.get $byte) (i32.const 65536))
    (i32.store8 (i32.const 200) (local.get $byte)))

  (func $recurse (param $n i32) (result i32)
    (i32.store (i32.const 300) (local.get $n))
    (i32.add (call $recurse (i32.add (local.get $n) (i32.const 1))) (i32.const 1)))

  (func $recurse_wide (param $n i32) (result i32 i64)
    (local $a v128) (local $b i64) (local i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64)
    (i32.store (i32.const 300) (local.get $n))
    (if (i32.eq (local.get $n) (i32.const -1)) (then (return (i32.const 0) (i64.const 0))))
    (call $recurse_wide (i32.add (local.get $n) (i32.const 1)))
    (local.set $b) (drop)
    (i32.load (i32.const 300)) (local.get $b))

  (func $apply (export "apply") (param $ptr i32) (param $len i32) (result i64)
    (local $op i32) (local $arg i32) (local $i i32)
    (local.set $op (i32.load8_u (i32.add (local.get $ptr) (i32.const 48))))
    (local.set $arg (i32.load8_u (i32.add (local.get $ptr) (i32.const 49))))
    (block $17 (block $16 (block $15 (block $14 (block $13 (block $12 (block $11 (block $10 (block $9 (block $8 (block $7
    (block $6 (block $5 (block $4 (block $3 (block $2 (block $1 (block $0
      (br_table $0 $1 $2 $3 $4 $5 $6 $7 $8 $9 $10 $11 $12 $13 $14 $15 $16 $17 (local.get $op)))
      ;; 0 add
      (global.set $counter (i64.add (global.get $counter) (i64.extend_i32_u (local.get $arg))))
      (i64.store (i32.const 70000) (i64.add (i64.load (i32.const 70000)) (i64.extend_i32_u (local.get $arg))))
      (return (call $reply (global.get $counter))))
      ;; 1 write and trap
      (call $emit (i32.const 64) (i32.const 3))
      (call $scribble (local.get $arg))
      (unreachable))
      ;; 2 loop
      (loop $forever
        (i32.store (i32.const 300) (i32.add (i32.load (i32.const 300)) (i32.const 1)))
        (br $forever)))
      ;; 3 recurse
      (drop (call $recurse (i32.const 0)))
      (return (i64.const 0)))
      ;; 4 grow
      (return (call $reply (i64.extend_i32_s (memory.grow (local.get $arg))))))
      ;; 5 emit $arg events of one byte
      (loop $again
        (if (i32.lt_u (local.get $i) (local.get $arg)) (then
          (call $emit (i32.add (i32.const 64) (local.get $i)) (i32.const 1))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $again))))
      (return (i64.const 0)))
      ;; 6 fail
      (call $log (i32.const 1) (i32.const 64) (i32.const 6))
      (call $scribble (local.get $arg))
      (call $fail (i32.const 64) (i32.const 13))
      (return (i64.const 0)))
      ;; 7 a reply of $arg * 100 bytes
      (return (i64.extend_i32_u (i32.mul (local.get $arg) (i32.const 100)))))
      ;; 8 write one byte in $arg pages of 4 KiB, growing memory to have them
      (if (i32.lt_u (memory.size) (i32.const 40)) (then (drop (memory.grow (i32.sub (i32.const 40) (memory.size))))))
      (loop $again
        (if (i32.lt_u (local.get $i) (local.get $arg)) (then
          (i32.store8 (i32.add (i32.const 131072) (i32.mul (local.get $i) (i32.const 4096))) (i32.add (local.get $i) (i32.const 1)))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $again))))
      (return (i64.const 0)))
      ;; 9 the bits of a NaN that the CPU makes
      (return (call $reply (i64.reinterpret_f64 (f64.div (f64.sub (f64.const 1) (f64.const 1)) (f64.mul (f64.const -0) (f64.convert_i32_u (local.get $arg))))))))
      ;; 10 reject
      (return (call $rejected (i32.const 64) (i32.const 13))))
      ;; 11 grow by 2, write there, trap
      (i32.store (i32.sub (i32.mul (i32.add (memory.grow (i32.const 2)) (i32.const 2)) (i32.const 65536)) (i32.const 4)) (i32.const -1))
      (unreachable))
      ;; 12 set $arg timers
      (loop $again
        (if (i32.lt_u (local.get $i) (local.get $arg)) (then
          (call $set_timer (i64.extend_i32_u (local.get $i)) (i64.const 5000))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br $again))))
      (return (i64.const 0)))
      ;; 13 out of bounds
      (call $scribble (local.get $arg))
      (return (i64.extend_i32_u (i32.load (i32.const 0x7fffffff)))))
      ;; 14 divide
      (call $scribble (local.get $arg))
      (return (i64.extend_i32_u (i32.div_u (i32.const 1) (i32.sub (local.get $arg) (local.get $arg))))))
      ;; 15 recurse, wide
      (call $recurse_wide (i32.const 0)) (drop) (drop)
      (return (i64.const 0)))
      ;; 16 the call header
      (return (i64.or (i64.shl (i64.extend_i32_u (local.get $ptr)) (i64.const 32)) (i64.const 48))))
      ;; 17 an event outside memory
      (call $emit (i32.const -8) (i32.const 16))
      (i64.const 0))

  (func (export "query") (param $ptr i32) (param $len i32) (result i64)
    (local $op i32)
    (local.set $op (i32.load8_u (i32.add (local.get $ptr) (i32.const 48))))
    (if (i32.eq (local.get $op) (i32.const 1)) (then (call $scribble (i32.const 255)) (drop (memory.grow (i32.const 3)))))
    (if (i32.eq (local.get $op) (i32.const 2)) (then (call $scribble (i32.const 255)) (unreachable)))
    (if (i32.eq (local.get $op) (i32.const 3)) (then (call $emit (i32.const 64) (i32.const 1))))
    (call $reply (global.get $counter)))

  (func (export "timer") (param $ptr i32) (param $len i32) (result i64)
    (global.set $counter (i64.add (global.get $counter) (i64.load (i32.add (local.get $ptr) (i32.const 48)))))
    (call $reply (global.get $counter)))

  (func (export "snapshot") (result i64)
    (i64.store (i32.const 16) (global.get $counter))
    (call $write (i32.const 16) (i32.const 8))
    (i64.const 0))
  (func (export "restore") (result i64)
    (if (i32.ne (call $read (i32.const 16) (i32.const 8)) (i32.const 8))
      (then (return (call $rejected (i32.const 64) (i32.const 13)))))
    (global.set $counter (i64.load (i32.const 16)))
    (i64.const 0)))
