//! Keys and values: any bytes, written in JSON so that text stays text.

use std::borrow::Borrow;
use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde::ser::SerializeMap;

/// Bytes. In JSON a string if they are UTF-8, else `{"hex":"00ff"}`; both forms are read. In a
/// snapshot, the bytes.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Data(Vec<u8>);

impl Data {
    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The least data above all that starts with this; `None` if there is none (it is empty or all
    /// 0xff).
    pub fn end_of_prefix(&self) -> Option<Self> {
        let mut end = self.0.clone();
        while let Some(last) = end.last_mut() {
            if let Some(next) = last.checked_add(1) {
                *last = next;
                return Some(Self(end));
            }
            end.pop();
        }
        None
    }
}

impl<T: Into<Vec<u8>>> From<T> for Data {
    fn from(bytes: T) -> Self {
        Self(bytes.into())
    }
}

/// Orders and compares as the bytes do, so that maps of data are searched with bytes.
impl Borrow<[u8]> for Data {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.0);
        }
        if let Ok(text) = std::str::from_utf8(&self.0) {
            return serializer.serialize_str(text);
        }
        let mut hex = String::with_capacity(self.0.len().saturating_mul(2));
        for byte in &self.0 {
            for digit in [byte >> 4, byte & 15] {
                hex.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("hex", &hex)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(DataVisitor)
        } else {
            deserializer.deserialize_byte_buf(DataVisitor)
        }
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"string or {"hex": "00ff"}"#)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Data, E> {
        Ok(Data(text.as_bytes().to_vec()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Data, E> {
        Ok(Data(text.into_bytes()))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Data, E> {
        Ok(Data(bytes.to_vec()))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Data, E> {
        Ok(Data(bytes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let (key, hex) = map.next_entry::<String, String>()?.ok_or_else(|| A::Error::custom("an empty object"))?;
        if key != "hex" || map.next_key::<String>()?.is_some() {
            return Err(A::Error::custom(r#"bytes are written {"hex":"00ff"}, with nothing beside"#));
        }
        from_hex(&hex).map(Data).ok_or_else(|| A::Error::custom("hex is an even number of the digits 0-9 a-f"))
    }
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>()?;
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(high << 4 | low).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_just_above_all_that_starts_with_it() {
        assert_eq!(Data::from("ab").end_of_prefix(), Some(Data::from("ac")));
        assert_eq!(Data::from([b'a', 0xff, 0xff]).end_of_prefix(), Some(Data::from("b")));
        assert_eq!(Data::from([0xff]).end_of_prefix(), None);
        assert_eq!(Data::default().end_of_prefix(), None);
    }
}
