//! Paths: which are good, and their parts.

use crate::wire::ErrorCode;

/// `/zookeeper`, and the nodes of ZooKeeper's own below it.
pub const ZOOKEEPER: &str = "/zookeeper";
/// Where quotas are.
pub const QUOTA: &str = "/zookeeper/quota";
/// The ensemble's configuration.
pub const CONFIG: &str = "/zookeeper/config";
/// ClickHouse Keeper's own nodes.
pub const KEEPER: &str = "/keeper";

/// The longest path of a node, bytes. ZooKeeper has no limit but that of a frame; here an event must hold one, beside
/// whom it may be told to.
pub const BYTES_MAX: usize = 448 << 10;

/// Checks a path as ZooKeeper's `PathUtils.validatePath` does: absolute, no empty part, no part `.`
/// or `..`, no `/` at the end, none of the characters that are not for text; and not longer than [`BYTES_MAX`].
pub fn check(path: &str) -> Result<(), ErrorCode> {
    if path.len() <= BYTES_MAX && is_good(path) { Ok(()) } else { Err(ErrorCode::BadArguments) }
}

/// One pass over the bytes, since this is on the way of every write; only what is not ASCII is looked
/// at as characters.
fn is_good(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let (mut name_length, mut is_dots, mut is_ascii) = (0_usize, true, true);
    for byte in rest.bytes() {
        match byte {
            b'/' if name_length == 0 || (is_dots && name_length <= 2) => return false,
            b'/' => (name_length, is_dots) = (0, true),
            0..0x20 | 0x7f => return false,
            _ => {
                name_length += 1;
                is_dots &= byte == b'.';
                is_ascii &= byte.is_ascii();
            }
        }
    }
    let is_last_good = rest.is_empty() || (name_length > 0 && !(is_dots && name_length <= 2));
    is_last_good && (is_ascii || !rest.chars().any(is_bad_character))
}

/// Of those that are not ASCII. ZooKeeper looks at UTF-16 units: a character beyond the basic plane is
/// two surrogates, and these are not allowed.
fn is_bad_character(character: char) -> bool {
    matches!(character, '\u{80}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..)
}

/// Splits a path into its parent's path (`""` for a child of the root) and its name, as ZooKeeper
/// does before it knows whether the path is good: only that there is a `/` and no NUL.
pub fn split(path: &str) -> Result<(&str, &str), ErrorCode> {
    if path.contains('\0') {
        return Err(ErrorCode::BadArguments);
    }
    path.rsplit_once('/').ok_or(ErrorCode::BadArguments)
}

/// As [`split`], for a path that shall be removed: those that ZooKeeper needs itself cannot be.
pub fn split_removable(path: &str) -> Result<(&str, &str), ErrorCode> {
    if matches!(path, "/" | ZOOKEEPER | QUOTA | CONFIG) {
        return Err(ErrorCode::BadArguments);
    }
    split(path)
}

/// Whether `path` is `top` or below it.
pub fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_paths_are_bad() {
        let bad = [
            "",
            "a",
            "a/b",
            "//",
            "/a/",
            "/a//b",
            "//a",
            "/.",
            "/..",
            "/./a",
            "/a/.",
            "/a/./b",
            "/a/../b",
            "/a/..",
            "\0",
            "/\0",
            "/a\0b",
            "/a\u{1}",
            "/\u{1f}b",
            "/\u{7f}",
            "/\u{9f}",
            "/\u{e000}",
            "/\u{f8ff}",
            "/\u{fff0}",
            "/\u{ffff}",
            "/\u{1f600}",
            "/a\n",
            " /a",
        ];
        for path in bad {
            assert_eq!(check(path), Err(ErrorCode::BadArguments), "{path:?}");
        }
    }

    #[test]
    fn a_path_is_no_longer_than_an_event_can_tell() {
        let path = format!("/{}", "p".repeat(BYTES_MAX - 1));
        assert_eq!(check(&path), Ok(()));
        assert_eq!(check(&format!("{path}p")), Err(ErrorCode::BadArguments));
    }

    #[test]
    fn good_paths_are_good() {
        let good = [
            "/",
            "/a",
            "/a/b",
            "/...",
            "/.a",
            "/a.",
            "/a..b",
            "/a/.b/..c",
            "/ ",
            "/a b",
            "/é",
            "/日本",
            "/\u{a0}",
            "/\u{d7ff}",
            "/\u{f900}",
            "/\u{ffef}",
            "/ä=;,:?*",
        ];
        for path in good {
            assert_eq!(check(path), Ok(()), "{path:?}");
        }
    }
}
