//! Data goes to standard output, everything else to standard error.

use std::io;
use std::io::IsTerminal;
use std::io::Write;

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets;
use serde::Serialize;

use super::failure::Failure;

/// The form of the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people: tables, and replies as they are
    #[default]
    Table,
    /// For programs: JSON, one document a line for streams
    Json,
}

/// Writes bytes to standard output. A reader that has gone away (`| head`) ends the process quietly.
pub fn write_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            Err(Failure::here(format!("cannot write to standard output: {error}"), "check where it is redirected to"))
        }
    }
}

/// Writes a line to standard output.
pub fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    write_bytes(format!("{}\n", text.as_ref()).as_bytes())
}

/// Says something to the person, on standard error.
pub fn note(text: impl AsRef<str>) {
    // Nobody reads it: nothing to be done.
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

/// A reply: its bytes as they are, and a line end if a person is looking.
pub fn reply(bytes: &[u8]) -> Result<(), Failure> {
    write_bytes(bytes)?;
    if io::stdout().is_terminal() && !bytes.ends_with(b"\n") { write_bytes(b"\n") } else { Ok(()) }
}

/// A JSON document on lines of its own.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(not_json)?;
    line(text)
}

/// A JSON document on one line.
pub fn json_line<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(not_json)?;
    line(text)
}

fn not_json(error: serde_json::Error) -> Failure {
    Failure::here(format!("the result cannot be written as JSON: {error}"), "use -o table")
}

/// Bytes inside a JSON document: as the JSON they are, else as text, else in hexadecimal.
pub fn bytes_as_json(bytes: &[u8]) -> serde_json::Value {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return value;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => serde_json::json!({ "hex": hex::encode(bytes) }),
    }
}

/// Rows under a heading.
pub fn table(heading: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(heading.iter().map(|word| word.to_uppercase()).collect::<Vec<_>>());
    table.add_rows(rows);
    // Flush with the left edge, and nothing behind the last word: it is read by `awk` too.
    let text: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    line(text.join("\n"))
}

/// Names and values, one pair a line.
pub fn pairs(pairs: &[(&str, String)]) -> Result<(), Failure> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name:width$}  {value}").trim_end().to_owned()).collect();
    line(lines.join("\n"))
}

/// What is not known is a dash.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn replies_of_any_bytes_fit_into_json() {
        assert_eq!(bytes_as_json(b"{\"a\":1}"), serde_json::json!({"a": 1}));
        assert_eq!(bytes_as_json(b"plain"), serde_json::json!("plain"));
        assert_eq!(bytes_as_json(&[0xff, 0x00]), serde_json::json!({"hex": "ff00"}));
        assert_eq!(bytes_as_json(b""), serde_json::json!(""));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!((size(17), size(2048), size(5 << 20)), ("17 B".into(), "2.0 KiB".into(), "5.0 MiB".into()));
    }
}
