//! What a type looks like in JSON, for whoever sent something else: `{"Add": integer} | "Reset"`.
//!
//! The type itself tells: it is deserialized from a [`Probe`], which notes down what it is asked
//! for and hands out dummies. Where a type will not take a dummy (or does not say what it wants)
//! the note ends in `…`: this is help for people, not a schema.

use std::fmt;
use std::fmt::Write;

use serde::Deserializer;
use serde::de;
use serde::de::DeserializeOwned;
use serde::de::DeserializeSeed;
use serde::de::IntoDeserializer;
use serde::de::Visitor;
use serde::de::value::StrDeserializer;

/// Types may contain themselves.
const MAX_DEPTH: u32 = 6;
/// A longer shape helps nobody, bytes.
const MAX_TEXT: usize = 400;
/// Of an enum with more, the rest are only hinted at.
const MAX_VARIANTS: usize = 20;

/// The shape of `T`: an enum's variants one by one, anything else as it is.
#[cold]
#[inline(never)]
pub(crate) fn of<T: DeserializeOwned>() -> String {
    let mut shapes = String::new();
    let (mut variant, mut variants) = (0, 1);
    while variant < variants {
        if variant > 0 {
            shapes.push_str(" | ");
        }
        if variant == MAX_VARIANTS {
            shapes.push('…');
            break;
        }
        let mut probe = Probe { text: String::new(), depth: 0, variant, variants: 1 };
        if T::deserialize(&mut probe).is_err() {
            probe.text.push('…');
        }
        shapes.push_str(&probe.text);
        variants = probe.variants;
        variant += 1;
    }
    shapes
}

/// A deserializer that holds no data.
struct Probe {
    text: String,
    depth: u32,
    /// Which variant of the outermost type to look at.
    variant: usize,
    /// How many the outermost type has.
    variants: usize,
}

/// The type will not be probed further.
#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Stop
    }
}

impl Probe {
    /// Notes what comes between `open` and `close`, one level down.
    fn within<T>(
        &mut self,
        open: &str,
        close: &str,
        inner: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        self.text.push_str(open);
        if self.depth >= MAX_DEPTH || self.text.len() > MAX_TEXT {
            return Err(Stop);
        }
        self.depth += 1;
        let value = inner(self)?;
        self.depth -= 1;
        self.text.push_str(close);
        Ok(value)
    }

    /// `[a, b]` of a tuple with `length` elements.
    fn tuple<'de, V: Visitor<'de>>(&mut self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.within("[", "]", |probe| visitor.visit_seq(Elements { probe, left: length, first: true }))
    }

    /// `{"a": …, "b": …}` of a struct with these fields.
    fn fields<'de, V: Visitor<'de>>(&mut self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Stop> {
        self.within("{", "}", |probe| visitor.visit_map(Fields { probe, left: fields, first: true }))
    }
}

/// Notes `$name` and hands out the dummy `$value`.
macro_rules! plain {
    ($($method:ident $visit:ident $value:expr, $name:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            self.text.push_str($name);
            visitor.$visit($value)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Probe {
    type Error = Stop;

    plain! {
        deserialize_bool visit_bool false, "boolean";
        deserialize_i8 visit_u64 1, "integer";
        deserialize_i16 visit_u64 1, "integer";
        deserialize_i32 visit_u64 1, "integer";
        deserialize_i64 visit_u64 1, "integer";
        deserialize_i128 visit_u64 1, "integer";
        deserialize_u8 visit_u64 1, "integer";
        deserialize_u16 visit_u64 1, "integer";
        deserialize_u32 visit_u64 1, "integer";
        deserialize_u64 visit_u64 1, "integer";
        deserialize_u128 visit_u64 1, "integer";
        deserialize_f32 visit_u64 1, "number";
        deserialize_f64 visit_u64 1, "number";
        deserialize_char visit_char 'a', "character";
        deserialize_str visit_str "", "string";
        deserialize_string visit_str "", "string";
        deserialize_bytes visit_bytes &[], "bytes";
        deserialize_byte_buf visit_bytes &[], "bytes";
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text.push_str("null");
        visitor.visit_unit()
    }

    /// The type takes several things: its own words for them are the best there are.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        struct Wanted<'a, V>(&'a V);
        impl<'de, V: Visitor<'de>> fmt::Display for Wanted<'_, V> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.expecting(f)
            }
        }
        let _ = write!(self.text, "({})", Wanted(&visitor));
        visitor.visit_str("")
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.within("", " or null", |probe| visitor.visit_some(probe))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.within("", "", |probe| visitor.visit_newtype_struct(probe))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.within("[", ", …]", |probe| visitor.visit_seq(Elements { probe, left: 1, first: true }))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.tuple(length, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.within("{", ", …}", |probe| visitor.visit_map(Entry { probe, read: false }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.fields(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        if self.text.is_empty() && self.depth == 0 {
            self.variants = variants.len();
            let name = variants.get(self.variant).ok_or(Stop)?;
            return visitor.visit_enum(Variant { probe: self, name });
        }
        // A visitor can be asked once, so of an enum inside there are only names.
        let _ = write!(self.text, "({})", variants.join(" | "));
        let noted = self.text.len();
        let name = variants.first().ok_or(Stop)?;
        let value = self.within("", "", |probe| visitor.visit_enum(Variant { probe, name }));
        self.text.truncate(noted);
        value
    }
}

/// The elements of a sequence.
struct Elements<'a> {
    probe: &'a mut Probe,
    left: usize,
    first: bool,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        if !std::mem::take(&mut self.first) {
            self.probe.text.push_str(", ");
        }
        seed.deserialize(&mut *self.probe).map(Some)
    }
}

/// The fields of a struct.
struct Fields<'a> {
    probe: &'a mut Probe,
    left: &'static [&'static str],
    first: bool,
}

impl<'de> de::MapAccess<'de> for Fields<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        let Some((name, left)) = self.left.split_first() else {
            return Ok(None);
        };
        self.left = left;
        let comma = if std::mem::take(&mut self.first) { "" } else { ", " };
        let _ = write!(self.probe.text, "{comma}\"{name}\": ");
        let name: StrDeserializer<'_, Stop> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        seed.deserialize(&mut *self.probe)
    }
}

/// The one entry of a map.
struct Entry<'a> {
    probe: &'a mut Probe,
    read: bool,
}

impl<'de> de::MapAccess<'de> for Entry<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        if std::mem::replace(&mut self.read, true) {
            return Ok(None);
        }
        seed.deserialize(&mut *self.probe).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        self.probe.text.push_str(": ");
        seed.deserialize(&mut *self.probe)
    }
}

/// One variant of an enum.
struct Variant<'a> {
    probe: &'a mut Probe,
    name: &'static str,
}

impl<'a, 'de> de::EnumAccess<'de> for Variant<'a> {
    type Error = Stop;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Stop> {
        let name: StrDeserializer<'_, Stop> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl Variant<'_> {
    fn with<T>(self, inner: impl FnOnce(&mut Probe) -> Result<T, Stop>) -> Result<T, Stop> {
        self.probe.within(&format!("{{\"{}\": ", self.name), "}", inner)
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        let _ = write!(self.probe.text, "\"{}\"", self.name);
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stop> {
        self.with(|probe| seed.deserialize(probe))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stop> {
        self.with(|probe| probe.tuple(length, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Stop> {
        self.with(|probe| probe.fields(fields, visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::num::NonZeroU8;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Command {
        Reset,
        Add(i64),
        Move(u8, f64),
        Put { key: String, ttl_ms: Option<NonZeroU8>, mode: Mode, tags: Vec<String> },
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Mode {
        Soft(u8),
        Hard,
    }

    #[test]
    fn an_enum_shows_each_variant() {
        assert_eq!(
            of::<Command>(),
            "\"Reset\" | {\"Add\": integer} | {\"Move\": [integer, number]} | {\"Put\": {\"key\": string, \
             \"ttl_ms\": integer or null, \"mode\": (Soft | Hard), \"tags\": [string, …]}}"
        );
    }

    #[test]
    fn other_types_show_what_they_are() {
        assert_eq!(of::<()>(), "null");
        assert_eq!(of::<BTreeMap<String, (bool, char)>>(), "{string: [boolean, character], …}");
        assert_eq!(of::<Option<u8>>(), "integer or null");
    }

    #[test]
    fn a_type_that_takes_no_dummy_is_shown_as_far_as_it_goes() {
        assert_eq!(of::<(u8, IpAddr, u8)>(), "[integer, string…");
    }

    #[test]
    fn a_type_that_contains_itself_ends() {
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct Tree {
            left: Option<Box<Tree>>,
            right: Option<Box<Tree>>,
        }
        let shape = of::<Tree>();
        assert!(shape.starts_with("{\"left\": {\"left\": ") && shape.ends_with('…'), "{shape}");
    }
}
