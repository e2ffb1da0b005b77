//! The counter as its clients see it.

#![allow(clippy::unwrap_used)]

use counter::Command;
use counter::Counter;
use counter::Query;
use statehouse_sdk::testing::Harness;

#[test]
fn it_counts() {
    let mut counter = Harness::<Counter>::new();
    assert_eq!(counter.apply_text(r#"{"Add":5}"#).unwrap(), "5");
    assert_eq!(counter.apply_text(r#"{"Add":-7}"#).unwrap(), "-2");
    assert_eq!(counter.query_text(r#""Get""#).unwrap(), "-2");
    counter.restart();
    assert_eq!(counter.apply(Command::Add(1)).unwrap(), -1);
    assert_eq!(counter.query(Query::Get).unwrap(), -1);
}

#[test]
fn an_overflow_is_refused_and_changes_nothing() {
    let mut counter = Harness::<Counter>::new();
    counter.apply(Command::Set(i64::MAX)).unwrap();
    assert_eq!(counter.apply(Command::Add(1)).unwrap_err().text(), "the counter would overflow");
    assert_eq!(counter.query(Query::Get).unwrap(), i64::MAX);
}

#[test]
fn a_command_it_does_not_know_is_told_what_it_knows() {
    let refusal = Harness::<Counter>::new().apply_text(r#"{"Multiply":2}"#).unwrap_err();
    assert!(refusal.text().contains("unknown variant `Multiply`, expected `Add` or `Set`"), "{refusal}");
}
