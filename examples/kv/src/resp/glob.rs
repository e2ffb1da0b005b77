//! Redis's patterns: `*`, `?`, `[a-z]`, `[^a]`, `\x`.

/// Whether all of `text` is as `pattern` says. Takes at most the product of both lengths of steps.
pub fn is_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Behind the last star, and what it swallows.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        if rest.first() == Some(&b'*') {
            at += 1;
            // Most patterns end with a star, or with letters behind their last one: nothing to try then.
            let rest = pattern.get(at..).unwrap_or_default();
            if prefix(rest).len() == rest.len() {
                return text.get(read..).unwrap_or_default().ends_with(rest);
            }
            star = Some((at, read));
            continue;
        }
        let Some(byte) = text.get(read) else {
            return rest.is_empty();
        };
        match (one(rest, *byte), star) {
            (Some(length), _) => {
                at += length;
                read += 1;
            }
            (None, Some((behind, swallowed))) => {
                at = behind;
                read = swallowed + 1;
                star = Some((behind, read));
            }
            (None, None) => return false,
        }
    }
}

/// How long the pattern's first part is, which is no star, if `byte` is as it says.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', class @ ..] => {
            let (is_in, length) = in_class(class, byte);
            is_in.then_some(length + 1)
        }
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Whether a class has the byte, and how long it is, with its closing bracket. One that is not closed
/// ends with the pattern.
fn in_class(class: &[u8], byte: u8) -> (bool, usize) {
    let is_negated = class.first() == Some(&b'^');
    let mut at = usize::from(is_negated);
    let mut is_in = false;
    loop {
        match class.get(at..).unwrap_or_default() {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                is_in |= *escaped == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                let (low, high) = (*from.min(to), *from.max(to));
                is_in |= (low..=high).contains(&byte);
                at += 3;
            }
            [member, ..] => {
                is_in |= *member == byte;
                at += 1;
            }
        }
    }
    (is_in != is_negated, at)
}

/// What all that match begin with.
pub fn prefix(pattern: &[u8]) -> &[u8] {
    let special = pattern.iter().position(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'));
    special.and_then(|at| pattern.get(..at)).unwrap_or(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hbllo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            (r"h\*llo", "h*llo", true),
            (r"h\*llo", "hello", false),
            (r"[\]]", "]", true),
            ("[ab", "b", true),
            ("user:*:x", "user:1:2:x", true),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbc", false),
            ("a**", "a", true),
        ] {
            assert_eq!(is_match(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
        assert_eq!(prefix(b"user:*"), b"user:");
        assert_eq!(prefix(b"user"), b"user");
    }

    /// Against the plain definition, on many short patterns and texts.
    #[test]
    fn shortcuts_change_no_answer() {
        fn plain(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern, text) {
                ([b'*', rest @ ..], _) => (0..=text.len()).any(|at| plain(rest, text.get(at..).unwrap_or_default())),
                ([], _) => text.is_empty(),
                (_, []) => false,
                (_, [byte, text @ ..]) => {
                    one(pattern, *byte).is_some_and(|length| plain(pattern.get(length..).unwrap_or_default(), text))
                }
            }
        }
        let words = |letters: &[u8], length: u32| -> Vec<Vec<u8>> {
            let count = letters.len();
            let word = |mut number: usize| {
                let mut word = Vec::new();
                for _ in 0..number % (length as usize + 1) {
                    number /= 3;
                    word.extend(letters.get(number % count));
                }
                word
            };
            (0..3_000).map(word).collect()
        };
        for pattern in words(b"ab*?", 6).iter().step_by(5) {
            for text in words(b"ab", 5).iter().step_by(97) {
                assert_eq!(is_match(pattern, text), plain(pattern, text), "{pattern:?} {text:?}");
            }
        }
    }

    /// The time of a match must not grow with the power of the stars.
    #[test]
    fn many_stars_take_no_time() {
        let (pattern, text) = (b"*a".repeat(20), b"a".repeat(2_000));
        assert!(!is_match(&[&pattern[..], b"b"].concat(), &text));
    }
}
