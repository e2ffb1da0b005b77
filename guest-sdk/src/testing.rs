//! t
pub(crate) fn is_muted() -> bool { false }
