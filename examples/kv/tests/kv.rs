//! The store as its clients see it: JSON in, JSON out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use kv::Kv;
use kv::api::Command;
use kv::data::Data;
use kv::store::Expect;
use serde_json::Value;
use serde_json::json;
use statehouse_sdk::Reject;
use statehouse_sdk::testing::Harness;
use statehouse_sdk::testing::START_MS;

/// A client of a fresh store.
struct Client(Harness<Kv>);

impl Client {
    fn new() -> Self {
        Self(Harness::new())
    }

    fn try_apply(&mut self, session: u64, command: &Value) -> Result<Value, Reject> {
        let reply = self.0.apply_bytes(session, command.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&reply).expect("replies are JSON"))
    }

    #[track_caller]
    fn apply(&mut self, command: Value) -> Value {
        self.try_apply(0, &command).expect("accepted")
    }

    #[track_caller]
    fn refusal(&mut self, session: u64, command: Value) -> String {
        self.try_apply(session, &command).expect_err("refused").to_string()
    }

    #[track_caller]
    fn query(&mut self, query: Value) -> Value {
        let answer = self.0.query_bytes(query.to_string().as_bytes()).expect("answered");
        serde_json::from_slice(&answer).expect("answers are JSON")
    }

    #[track_caller]
    fn put(&mut self, key: &str, value: &str) {
        self.apply(json!({"Put": {"key": key, "value": value}}));
    }

    #[track_caller]
    fn get(&mut self, key: &str) -> Value {
        let item = self.query(json!({"Get": {"key": key}}));
        item.get("value").cloned().unwrap_or(Value::Null)
    }

    fn events(&mut self) -> Vec<Value> {
        let events = self.0.take_events();
        events.iter().map(|event| serde_json::from_slice(&event.0).expect("events are JSON")).collect()
    }
}

#[test]
fn a_key_is_put_read_replaced_and_deleted() {
    let mut client = Client::new();
    let put = json!({"Put": {"key": "a", "value": "1"}});
    assert_eq!(client.apply(put), json!({"version": 1, "previous_version": null}));
    let put = json!({"Put": {"key": "a", "value": "2"}});
    assert_eq!(client.apply(put), json!({"version": 2, "previous_version": 1}));
    assert_eq!(client.query(json!({"Get": {"key": "a"}})), json!({"key": "a", "value": "2", "version": 2}));
    assert_eq!(client.apply(json!({"Delete": {"key": "a"}})), json!({"deleted": true, "version": 3}));
    assert_eq!(client.apply(json!({"Delete": {"key": "a"}})), json!({"deleted": false, "version": null}));
    assert_eq!(client.query(json!({"Get": {"key": "a"}})), Value::Null);
    assert_eq!(client.query(json!("Status")), json!({"keys": 0, "version": 3}));
}

#[test]
fn each_change_of_a_key_is_an_event() {
    let mut client = Client::new();
    client.put("a", "1");
    client.apply(json!({"Delete": {"key": "a"}}));
    client.apply(json!({"Delete": {"key": "a"}}));
    client.apply(json!({"Put": {"key": "b", "value": "2", "ttl_ms": 5}}));
    client.0.advance(5);
    let expected = [
        json!({"change": "put", "key": "a", "value": "1", "version": 1}),
        json!({"change": "delete", "key": "a", "version": 2}),
        json!({"change": "put", "key": "b", "value": "2", "version": 3}),
        json!({"change": "expire", "key": "b", "version": 4}),
    ];
    assert_eq!(client.events(), expected);
}

#[test]
fn compare_and_swap_swaps_only_what_it_expects() {
    let mut client = Client::new();
    let swap =
        |expect: Value, value: &str| json!({"CompareAndSwap": {"key": "lock", "expect": expect, "value": value}});
    assert_eq!(client.apply(swap(json!({"Version": 1}), "x")), json!({"swapped": false}));
    assert_eq!(client.apply(swap(json!("Absent"), "ada")), json!({"swapped": true, "version": 1}));
    let found = json!({"swapped": false, "found": {"key": "lock", "value": "ada", "version": 1}});
    assert_eq!(client.apply(swap(json!("Absent"), "bob")), found);
    assert_eq!(client.apply(swap(json!({"Value": "ada"}), "bob")), json!({"swapped": true, "version": 2}));
    assert_eq!(client.apply(swap(json!({"Version": 2}), "cyd")), json!({"swapped": true, "version": 3}));
}

/// Versions count the store's changes and not a key's: one that was deleted and made again has
/// another.
#[test]
fn a_version_is_never_met_again() {
    let mut client = Client::new();
    client.put("a", "1");
    client.apply(json!({"Delete": {"key": "a"}}));
    client.put("a", "1");
    let swap = json!({"CompareAndSwap": {"key": "a", "expect": {"Version": 1}, "value": "2"}});
    assert_eq!(client.apply(swap).get("swapped"), Some(&json!(false)));
}

#[test]
fn ranges_are_ordered_limited_and_go_on() {
    let mut client = Client::new();
    for key in ["b/2", "a", "b/1", "b/3", "c", "b"] {
        client.put(key, "x");
    }
    let keys = |answer: &Value| -> Vec<String> {
        let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
    };
    let all = client.query(json!({"Range": {}}));
    assert_eq!(keys(&all), ["a", "b", "b/1", "b/2", "b/3", "c"]);
    assert_eq!(all["next"], Value::Null);

    let first = client.query(json!({"Range": {"prefix": "b/", "limit": 2, "keys_only": true}}));
    assert_eq!(first["items"][0], json!({"key": "b/1", "version": 3}));
    assert_eq!((keys(&first), &first["next"]), (vec!["b/1".to_owned(), "b/2".to_owned()], &json!("b/3")));
    let rest = client.query(json!({"Range": {"prefix": "b/", "limit": 2, "start": first["next"]}}));
    assert_eq!((keys(&rest), &rest["next"]), (vec!["b/3".to_owned()], &Value::Null));

    assert_eq!(keys(&client.query(json!({"Range": {"start": "b/2", "end": "c"}}))), ["b/2", "b/3"]);
    assert_eq!(keys(&client.query(json!({"Range": {"start": "c", "end": "a"}}))), [""; 0]);
    assert_eq!(client.query(json!({"Range": {"limit": 0}}))["next"], json!("a"));
}

/// A range of large values ends early instead of growing past what the host lets an answer be.
#[test]
fn a_range_is_limited_in_bytes_too() {
    let mut client = Client::new();
    let large = "x".repeat(100 << 10);
    for key in ["a", "b", "c", "d"] {
        client.put(key, &large);
    }
    let answer = client.query(json!({"Range": {}}));
    assert_eq!((answer["items"].as_array().map(Vec::len), &answer["next"]), (Some(2), &json!("c")));
}

#[test]
fn a_key_is_gone_when_its_time_has_come() {
    let mut client = Client::new();
    client.apply(json!({"Put": {"key": "a", "value": "1", "ttl_ms": 1000}}));
    assert_eq!(client.query(json!({"Get": {"key": "a"}}))["expires_at_ms"], json!(START_MS + 1000));
    client.0.advance(999);
    assert_eq!(client.get("a"), "1");
    client.0.advance(1);
    assert_eq!(client.get("a"), Value::Null);
    assert_eq!(client.query(json!("Status"))["keys"], 0);
}

/// One timer serves all keys: it stands at the earliest expiry, moves with it, and goes with the
/// last.
#[test]
fn the_timer_stands_at_the_earliest_expiry() {
    let mut client = Client::new();
    let put = |key: &str, ttl_ms: u64| json!({"Put": {"key": key, "value": "", "ttl_ms": ttl_ms}});
    let timer = |client: &Client| client.0.timers().get(&1).map(|at_ms| at_ms - START_MS);
    client.apply(put("late", 900));
    client.apply(put("early", 100));
    assert_eq!(timer(&client), Some(100));
    client.apply(put("early", 500));
    assert_eq!(timer(&client), Some(500));
    client.apply(json!({"Delete": {"key": "early"}}));
    assert_eq!(timer(&client), Some(900));
    client.apply(json!({"Expire": {"key": "late", "ttl_ms": 50}}));
    assert_eq!(timer(&client), Some(50));
    assert_eq!(client.apply(json!({"Expire": {"key": "late"}})), json!({"found": true}));
    assert_eq!(timer(&client), None);
    client.0.advance(10_000);
    assert_eq!(client.get("late"), "");
    assert_eq!(client.apply(json!({"Expire": {"key": "never"}})), json!({"found": false}));
}

/// The host may be late with a timer. A key whose time has come is gone all the same: for a put,
/// which then replaces nothing, and for a swap.
#[test]
fn a_late_timer_shows_no_dead_key() {
    let mut store = kv::store::Store::default();
    let (key, one) = (Data::from("a"), Data::from("1"));
    store.put(0, key.clone(), one.clone(), kv::store::Lifetime::Until(10));
    assert!(store.get(9, key.as_bytes()).is_some());
    assert!(store.get(10, key.as_bytes()).is_none());
    assert!(store.is_as_expected(10, key.as_bytes(), &Expect::Absent));
    assert_eq!(store.delete(10, key.as_bytes()), None);
    let (version, previous) = store.put(11, key.clone(), one, kv::store::Lifetime::Forever);
    assert_eq!((version, previous), (2, None));
    assert_eq!(store.expire_one(100), None, "the old expiry is forgotten");
}

/// Thousands of keys that expire together are not one entry that runs out of fuel and events.
#[test]
fn many_expiries_at_once_are_many_entries() {
    let mut harness = Harness::<Kv>::new().check_every(500);
    for key in 0..2_500 {
        let (key, value) = (Data::from(format!("{key}")), Data::default());
        harness.apply(Command::Put { key, value, ttl_ms: Some(10), ephemeral: false }).unwrap();
    }
    harness.take_events();
    assert_eq!(harness.advance(10), 3);
    assert_eq!(harness.take_events().len(), 2_500);
    assert!(harness.machine().store().is_empty());
    assert!(harness.timers().is_empty());
}

#[test]
fn ephemeral_keys_go_with_their_session() {
    let mut client = Client::new();
    let (mine, other) = (client.0.open_session(), client.0.open_session());
    let put = |key: &str| json!({"Put": {"key": key, "value": "here", "ephemeral": true}});
    client.try_apply(mine, &put("mine")).unwrap();
    client.try_apply(mine, &put("taken over")).unwrap();
    client.try_apply(other, &put("other")).unwrap();
    client.try_apply(other, &put("taken over")).unwrap();
    assert_eq!(client.query(json!({"Get": {"key": "mine"}}))["session"], json!(mine));
    client.events();
    client.0.end_session(mine);
    assert_eq!(client.get("mine"), Value::Null, "gone at once");
    client.0.advance(0);
    assert_eq!(client.events(), [json!({"change": "session_end", "key": "mine", "version": 5})]);
    assert_eq!((client.get("other"), client.get("taken over")), (json!("here"), json!("here")));
    client.0.end_session(other);
    client.0.end_session(77);
    client.0.advance(0);
    assert_eq!(client.query(json!("Status"))["keys"], 0);
}

#[test]
fn a_put_that_cannot_be_is_refused_and_changes_nothing() {
    let mut client = Client(Harness::with_params(r#"{"max_key_bytes":3,"max_value_bytes":4}"#));
    let put = |key: &str, value: &str| json!({"Put": {"key": key, "value": value}});
    assert_eq!(client.refusal(0, put("", "x")), "a key must not be empty");
    assert_eq!(client.refusal(0, put("long", "x")), "the key has 4 bytes; this group takes 3");
    assert_eq!(client.refusal(0, put("key", "value")), "the value has 5 bytes; this group takes 4");
    let ephemeral = json!({"Put": {"key": "a", "value": "", "ephemeral": true}});
    assert_eq!(client.refusal(0, ephemeral), "an ephemeral key needs a session to go with");
    let both = json!({"Put": {"key": "a", "value": "", "ephemeral": true, "ttl_ms": 1}});
    assert_eq!(client.refusal(1, both), "a key is either ephemeral or has a ttl_ms, not both");
    let misspelt = json!({"Put": {"key": "a", "value": "", "ttl": 1}});
    assert!(client.refusal(0, misspelt).contains("unknown field `ttl`"));
    assert_eq!(client.query(json!("Status")), json!({"keys": 0, "version": 0}));
    assert!(Harness::<Kv>::try_with_params(r#"{"max_key":3}"#).unwrap_err().text().contains("unknown field `max_key`"));
}

#[test]
fn bytes_that_are_no_text_are_written_in_hex() {
    let mut client = Client::new();
    client.apply(json!({"Put": {"key": {"hex": "00FF"}, "value": {"hex": "68690a"}}}));
    let item = client.query(json!({"Get": {"key": {"hex": "00ff"}}}));
    assert_eq!(item, json!({"key": {"hex": "00ff"}, "value": "hi\n", "version": 1}));
    let odd = json!({"Put": {"key": {"hex": "123"}, "value": ""}});
    assert!(client.refusal(0, odd).contains("hex is an even number of the digits 0-9 a-f"));
    let not_bytes = json!({"Put": {"key": 7, "value": ""}});
    assert!(client.refusal(0, not_bytes).contains(r#"expected string or {"hex": "00ff"}"#));
}
