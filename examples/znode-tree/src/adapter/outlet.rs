//! What one call of the host may hand over: at most 64 MiB, or the host gives the whole adapter up.
//!
//! One change that thousands watch, or many that were held up and come at once, may be more. Then whoever does not fit in
//! is disconnected: it comes back and is told what it missed, and all others go on.

/// What is handed over in one call, bytes; the rest is for what is small and not counted.
const CALL_BYTES_MAX: usize = 56 << 20;
/// What a record has beside the bytes that are sent.
const RECORD_BYTES: usize = 16;

/// Counts what is sent to clients in the call under way.
#[derive(Debug, Default)]
pub struct Outlet {
    bytes: usize,
}

impl Outlet {
    /// Whether so many bytes may still be sent; then they are counted.
    pub fn takes(&mut self, bytes: usize) -> bool {
        let then = self.bytes.saturating_add(bytes).saturating_add(RECORD_BYTES);
        if then <= CALL_BYTES_MAX {
            self.bytes = then;
        }
        then <= CALL_BYTES_MAX
    }

    /// Another call begins.
    pub fn clear(&mut self) {
        self.bytes = 0;
    }
}
