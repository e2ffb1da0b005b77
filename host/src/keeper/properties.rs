//! Java's properties files, as `java.util.Properties` reads them, with the line of each property.
//!
//! A file is ISO 8859-1 there; UTF-8 is read as such here when it is valid, which is what its writer meant.

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// The line it begins on, from 1.
    pub line: usize,
    /// The key, without escapes.
    pub key: String,
    /// The value, without escapes and, as ZooKeeper wants it, without spaces around it.
    pub value: String,
}

/// Reads a file's properties in their order; of a key that comes twice, both. The error is a line (from 1) and what is
/// wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Vec<Property>, (usize, String)> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut properties = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let start = line.trim_start_matches(is_space);
        if start.is_empty() || start.starts_with(['#', '!']) {
            continue;
        }
        let mut logical = start.to_owned();
        while goes_on(&logical) {
            logical.pop();
            let Some((_, next)) = lines.next() else { break };
            logical.push_str(next.trim_start_matches(is_space));
        }
        let (key, value) = split(&logical);
        let read = |text: &str| unescape(text).map_err(|what| (number + 1, what));
        properties.push(Property { line: number + 1, key: read(key)?, value: read(value)?.trim().to_owned() });
    }
    Ok(properties)
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\x0c')
}

/// Whether a line ends in a backslash that is not itself escaped.
fn goes_on(line: &str) -> bool {
    line.chars().rev().take_while(|character| *character == '\\').count() % 2 == 1
}

/// Key and value: the key ends at the first `=`, `:` or space without a backslash before it.
fn split(line: &str) -> (&str, &str) {
    let mut is_escaped = false;
    let end = line.char_indices().find(|(_, character)| {
        let ends = !is_escaped && (matches!(character, '=' | ':') || is_space(*character));
        is_escaped = *character == '\\' && !is_escaped;
        ends
    });
    let Some((key, rest)) = end.and_then(|(at, _)| line.split_at_checked(at)) else { return (line, "") };
    let rest = rest.trim_start_matches(is_space);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, value.trim_start_matches(is_space))
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\x0c'),
            Some('u') => {
                let digits: String = characters.by_ref().take(4).collect();
                let number = (digits.len() == 4).then(|| u32::from_str_radix(&digits, 16).ok()).flatten();
                let character = number.and_then(char::from_u32);
                out.push(character.ok_or_else(|| format!("`\\u{digits}` is no character"))?);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn pairs(text: &[u8]) -> Vec<(usize, String, String)> {
        parse(text).unwrap().into_iter().map(|property| (property.line, property.key, property.value)).collect()
    }

    /// The example of `java.util.Properties`' own documentation, and what real files have besides.
    #[test]
    fn keys_and_values_part_where_java_parts_them() {
        for line in ["Truth = Beauty", " Truth:Beauty", "Truth\t\t\t:Beauty  ", "Truth Beauty"] {
            assert_eq!(pairs(line.as_bytes()), [(1, "Truth".to_owned(), "Beauty".to_owned())], "{line}");
        }
        assert_eq!(pairs(b"server.1=zoo1:2888:3888;2181")[0].2, "zoo1:2888:3888;2181");
        assert_eq!(pairs(b"a\\=b\\ c=d\\:\\\\e"), [(1, "a=b c".to_owned(), "d:\\e".to_owned())]);
        assert_eq!(pairs(b"cheese"), [(1, "cheese".to_owned(), String::new())]);
        assert_eq!(pairs("a=\\u0041\u{e4}".as_bytes())[0].2, "A\u{e4}");
        assert_eq!(pairs(b"a=\xe4")[0].2, "\u{e4}", "ISO 8859-1");
    }

    #[test]
    fn comments_blank_lines_and_lines_that_go_on_keep_the_count_of_lines() {
        let text = b"# c\n! c\r\n\n  fruits   apple, banana, \\\r\n     pear, \\\n  # no comment\nlast=1\\\\\nend=2";
        let found = pairs(text);
        assert_eq!(found[0], (4, "fruits".to_owned(), "apple, banana, pear, # no comment".to_owned()));
        assert_eq!(found[1], (7, "last".to_owned(), "1\\".to_owned()));
        assert_eq!(found[2], (8, "end".to_owned(), "2".to_owned()));
        assert_eq!(pairs(b"end=1\\"), [(1, "end".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn a_broken_escape_is_said_with_its_line() {
        assert_eq!(parse(b"a=1\nb=\\u12").unwrap_err(), (2, "`\\u12` is no character".to_owned()));
    }
}
