//! Which requests are sent, in which proportion, at which nodes: a TOML file, or one of ten that came with the
//! program. They follow the proportions of the stress tests that ClickHouse runs against its own Keeper.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

/// The workloads that came with the program, by name.
pub(super) const NAMED: [(&str, &str); 10] = [
    ("prod-mix", include_str!("workloads/prod-mix.toml")),
    ("read", include_str!("workloads/read.toml")),
    ("write", include_str!("workloads/write.toml")),
    ("read-multi", include_str!("workloads/read-multi.toml")),
    ("write-multi", include_str!("workloads/write-multi.toml")),
    ("list-heavy", include_str!("workloads/list-heavy.toml")),
    ("churn", include_str!("workloads/churn.toml")),
    ("large-payload", include_str!("workloads/large-payload.toml")),
    ("single-hot-get", include_str!("workloads/single-hot-get.toml")),
    ("multi-large", include_str!("workloads/multi-large.toml")),
];

/// Requests stay below the 1 MiB that ZooKeeper takes by default.
pub(super) const VALUE_BYTES_MAX: u32 = 1_000_000;
const PARTS_MAX: u32 = 10_000;
const NAME_BYTES_MAX: u32 = 200;
pub(super) const KEYS_MAX: u32 = 10_000_000;
/// Shorter random names would meet each other.
const NAME_BYTES_MIN: u32 = 8;

/// What a file says. Every table is a kind of request; those that are left out are not sent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Workload {
    /// How many nodes there are below `pool`.
    #[serde(default = "default_keys")]
    pub keys: u32,
    /// How long the values are that are written.
    #[serde(default = "default_value_bytes")]
    pub value_bytes: Span,
    /// How long the names are of nodes that are created.
    #[serde(default = "default_name_bytes")]
    pub name_bytes: Span,
    pub get: Option<At>,
    pub exists: Option<At>,
    pub list: Option<At>,
    pub set: Option<At>,
    pub create: Option<Create>,
    pub sync: Option<Sync>,
    pub multi: Option<Multi>,
}

/// A request at a node that is there.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct At {
    #[serde(default = "one")]
    pub weight: u32,
    pub at: Vec<Place>,
}

/// The creation of a node, or the removal of one that the same session has created.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Create {
    #[serde(default = "one")]
    pub weight: u32,
    pub under: Vec<Place>,
    /// The share of removals, as long as there is anything to remove.
    #[serde(default)]
    pub remove: f64,
}

/// A sync: the server catches up with its leader.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Sync {
    #[serde(default = "one")]
    pub weight: u32,
}

/// Several operations in one request: either reads or changes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Multi {
    #[serde(default = "one")]
    pub weight: u32,
    /// How many operations.
    pub size: Span,
    pub get: Option<At>,
    pub list: Option<At>,
    pub set: Option<At>,
    pub check: Option<At>,
    pub create: Option<Create>,
}

/// Nodes of the tree that is there before the first request.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) enum Place {
    /// One node that everybody uses.
    #[serde(rename = "hot")]
    Hot,
    /// The parent of the keys.
    #[serde(rename = "pool")]
    Pool,
    /// A parent that is empty at first.
    #[serde(rename = "churn")]
    Churn,
    /// Any of the keys. Each counts as a place of its own.
    #[serde(rename = "pool/*")]
    Keys,
}

/// A number, or the least and the most of what is drawn each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOrTwo")]
pub(super) struct Span {
    pub least: u32,
    pub most: u32,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or [least, most]")]
enum OneOrTwo {
    One(u32),
    Two([u32; 2]),
}

impl TryFrom<OneOrTwo> for Span {
    type Error = String;

    fn try_from(given: OneOrTwo) -> Result<Self, String> {
        match given {
            OneOrTwo::One(number) => Ok(Self { least: number, most: number }),
            OneOrTwo::Two([least, most]) if least <= most => Ok(Self { least, most }),
            OneOrTwo::Two([least, most]) => Err(format!("[{least}, {most}]: the least is over the most")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most { self.least.fmt(f) } else { write!(f, "{}-{}", self.least, self.most) }
    }
}

/// `NUMBER` or `LEAST-MOST`, as a flag takes it.
pub(super) fn parse_span(text: &str) -> Result<Span, String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let number = |part: &str| part.trim().parse().map_err(|_| format!("`{text}` is neither a number nor LEAST-MOST"));
    OneOrTwo::Two([number(least)?, number(most)?]).try_into()
}

fn one() -> u32 {
    1
}

fn default_keys() -> u32 {
    64
}

fn default_value_bytes() -> Span {
    Span { least: 0, most: 162 }
}

fn default_name_bytes() -> Span {
    Span { least: 8, most: 16 }
}

/// Why there is no workload.
#[derive(Debug, Error)]
pub(super) enum WorkloadError {
    #[error("cannot read the workload {path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("the workload {name} is not understood: {detail}")]
    NotUnderstood { name: String, detail: String },
    #[error("the workload {name} makes no sense: {detail}")]
    Senseless { name: String, detail: String },
}

impl Workload {
    /// The workload of that name, or else of that file.
    pub(super) fn find(name: &str) -> Result<Self, WorkloadError> {
        if let Some((_, text)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text);
        }
        match std::fs::read_to_string(Path::new(name)) {
            Ok(text) => Self::parse(name, &text),
            Err(source) => Err(WorkloadError::Unreadable { path: name.into(), source }),
        }
    }

    pub(super) fn parse(name: &str, text: &str) -> Result<Self, WorkloadError> {
        let workload: Self = toml::from_str(text).map_err(|error| WorkloadError::NotUnderstood {
            name: name.into(),
            detail: error.to_string().trim().to_owned(),
        })?;
        workload.check().map_err(|detail| WorkloadError::Senseless { name: name.into(), detail })?;
        Ok(workload)
    }

    /// What a single value cannot know of the others.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut weights = Weights::default();
        if !(1..=KEYS_MAX).contains(&self.keys) {
            return Err(format!("keys = {} is not from 1 to {KEYS_MAX}", self.keys));
        }
        within("value-bytes", self.value_bytes, 0, VALUE_BYTES_MAX)?;
        within("name-bytes", self.name_bytes, NAME_BYTES_MIN, NAME_BYTES_MAX)?;
        for (name, at) in [("get", &self.get), ("exists", &self.exists), ("list", &self.list), ("set", &self.set)] {
            at.iter().try_for_each(|at| weights.at(name, at))?;
        }
        self.create.iter().try_for_each(|create| weights.create("create", create))?;
        self.sync.iter().for_each(|sync| weights.add("sync", sync.weight));
        if let Some(multi) = &self.multi {
            weights.add("multi", multi.weight);
            multi.check()?;
        }
        weights.some("the workload")
    }
}

impl Multi {
    /// Whether it only reads.
    pub(super) fn reads(&self) -> bool {
        self.get.is_some() || self.list.is_some()
    }

    fn check(&self) -> Result<(), String> {
        let mut weights = Weights::default();
        within("multi.size", self.size, 1, PARTS_MAX)?;
        let ats = [
            ("multi.get", &self.get),
            ("multi.list", &self.list),
            ("multi.set", &self.set),
            ("multi.check", &self.check),
        ];
        for (name, at) in ats {
            at.iter().try_for_each(|at| weights.at(name, at))?;
        }
        self.create.iter().try_for_each(|create| weights.create("multi.create", create))?;
        if self.reads() && (self.set.is_some() || self.check.is_some() || self.create.is_some()) {
            return Err("[multi] has reads and changes: ZooKeeper takes either in one request".into());
        }
        weights.some("[multi]")
    }
}

fn within(name: &str, span: Span, least: u32, most: u32) -> Result<(), String> {
    if span.least < least || span.most > most {
        return Err(format!("{name} = {span} is not from {least} to {most}"));
    }
    Ok(())
}

/// The sum of weights, and that places are named.
#[derive(Default)]
struct Weights(BTreeMap<&'static str, u64>);

impl Weights {
    fn add(&mut self, name: &'static str, weight: u32) {
        self.0.insert(name, weight.into());
    }

    fn at(&mut self, name: &'static str, at: &At) -> Result<(), String> {
        self.add(name, at.weight);
        if at.at.is_empty() { Err(format!("[{name}] has no place in `at`")) } else { Ok(()) }
    }

    fn create(&mut self, name: &'static str, create: &Create) -> Result<(), String> {
        self.add(name, create.weight);
        if create.under.is_empty() {
            return Err(format!("[{name}] has no place in `under`"));
        }
        if create.under.contains(&Place::Hot) {
            return Err(format!("[{name}] creates under `hot`: take `churn`"));
        }
        if !(0.0..=1.0).contains(&create.remove) {
            return Err(format!("[{name}] remove = {} is no share from 0 to 1", create.remove));
        }
        Ok(())
    }

    fn some(&self, what: &str) -> Result<(), String> {
        match self.0.values().sum::<u64>() {
            0 => Err(format!("{what} has no request with a weight above 0")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn the_workloads_that_came_with_the_program_are_sound() {
        for (name, _) in NAMED {
            Workload::find(name).unwrap_or_else(|error| panic!("{error}"));
        }
        let mix = Workload::find("prod-mix").unwrap();
        assert_eq!((mix.keys, mix.value_bytes, mix.name_bytes), (64, default_value_bytes(), default_name_bytes()));
        assert_eq!(mix.get.unwrap(), At { weight: 38, at: vec![Place::Hot, Place::Hot, Place::Pool, Place::Churn] });
        assert_eq!(mix.create.unwrap().remove, 0.49);
        assert_eq!(mix.multi.unwrap().size, Span { least: 3, most: 7 });
        assert!(Workload::find("read-multi").unwrap().multi.unwrap().reads());
    }

    #[test]
    fn a_number_stands_for_least_and_most() {
        let workload = Workload::parse("x", "value-bytes = 100\nkeys = 7\n[get]\nat = [\"pool/*\"]").unwrap();
        assert_eq!((workload.value_bytes, workload.keys), (Span { least: 100, most: 100 }, 7));
        assert_eq!(parse_span("100"), Ok(Span { least: 100, most: 100 }));
        assert_eq!(parse_span("1-4"), Ok(Span { least: 1, most: 4 }));
        assert!(parse_span("4-1").is_err() && parse_span("x").is_err() && parse_span("-").is_err());
    }

    #[test]
    fn what_makes_no_sense_is_told_by_name() {
        for (text, words) in [
            ("", "no request with a weight above 0"),
            ("[get]\nat = [\"hot\"]\nwieght = 3", "unknown field `wieght`"),
            ("concurrency = 64\n[get]\nat = [\"hot\"]", "unknown field `concurrency`"),
            ("[put]\nat = [\"hot\"]", "unknown field `put`"),
            ("[get]\nat = [\"/hot\"]", "unknown variant `/hot`"),
            ("[get]\nat = []", "[get] has no place"),
            ("[get]", "missing field `at`"),
            ("[get]\nat = [\"hot\"]\nweight = 0", "no request with a weight above 0"),
            ("keys = 0\n[get]\nat = [\"hot\"]", "keys = 0"),
            ("value-bytes = [5, 4]\n[get]\nat = [\"hot\"]", "the least is over the most"),
            ("value-bytes = 2000000\n[get]\nat = [\"hot\"]", "value-bytes = 2000000"),
            ("name-bytes = 3\n[get]\nat = [\"hot\"]", "name-bytes = 3"),
            ("[create]\nunder = [\"churn\"]\nremove = 1.5", "remove = 1.5"),
            ("[create]\nunder = [\"hot\"]", "under `hot`"),
            ("[multi]\nsize = 3", "[multi] has no request"),
            ("[multi]\nsize = 0\nset = { at = [\"hot\"] }", "multi.size = 0"),
            ("[multi]\nsize = 2\nset = { at = [\"hot\"] }\nget = { at = [\"hot\"] }", "reads and changes"),
        ] {
            let error = Workload::parse("mine.toml", text).expect_err(text).to_string();
            assert!(error.contains(words) && error.contains("mine.toml"), "{text}\n{error}");
        }
        assert!(Workload::find("/no/such/file").unwrap_err().to_string().contains("/no/such/file"));
    }
}
