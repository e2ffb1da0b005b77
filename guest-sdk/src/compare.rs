//! `memcmp` for wasm32, eight bytes at a time.
//!
//! The one that comes with Rust's `wasm32-unknown-unknown` compares byte by byte. Every comparison of strings and
//! byte slices goes through it, so maps keyed by text spent more time here than in anything else. The linker
//! takes this definition in its place, for a module's whole code.

#![allow(unsafe_code)]

/// As in C: negative, zero or positive as `left` is less than, equal to or greater than `right`.
///
/// # Safety
///
/// `length` bytes can be read from both pointers.
#[inline(never)]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: of both, by the contract; each use below ends at or before `length`.
    let word = |at: usize| unsafe {
        (left.add(at).cast::<u64>().read_unaligned(), right.add(at).cast::<u64>().read_unaligned())
    };
    if length < 8 {
        for at in 0..length {
            // SAFETY: as above.
            let (one, other) = unsafe { (*left.add(at), *right.add(at)) };
            if one != other {
                return i32::from(one) - i32::from(other);
            }
        }
        return 0;
    }
    let last = length - 8;
    let mut at = 0;
    loop {
        let (one, other) = word(at);
        if one != other {
            // Little-endian: the first byte that differs is the lowest.
            let shift = (one ^ other).trailing_zeros() & !7;
            return (one >> shift & 0xff) as i32 - (other >> shift & 0xff) as i32;
        }
        if at == last {
            return 0;
        }
        // The last word may overlap the one before it.
        at = last.min(at + 8);
    }
}
