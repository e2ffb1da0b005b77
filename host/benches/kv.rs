//! The same Rust state machine, natively and in WebAssembly with fuel on: `kv`, fed the same bytes and giving the same
//! answers. The ratio of the two is what the runtime costs a module author.
//!
//! CPU time of the thread. No criterion: it measures one thing for seconds and then the other, and on a machine that does something else
//! too the ratio is then of two different moments. Here the two take turns, some milliseconds each, and what
//! counts is the median of the turns' ratios.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]
#![allow(clippy::disallowed_methods)]

use cpu_time::ThreadTime;
use kv::Kv;
use statehouse::module::Context;
use statehouse::module::Effects;
use statehouse::module::Engine;
use statehouse::module::Limits;
use statehouse::module::Machine;
use statehouse::module::Outcome;
use statehouse_sdk::Guest;
use statehouse_sdk::Header;
use statehouse_sdk::codec::Json;

/// Keys in the store; commands go round them.
const KEYS: u64 = 10_000;
/// How often the two take turns.
const TURNS: usize = 61;

struct Native {
    guest: Guest<Kv, Json>,
    host: statehouse_sdk::Effects,
    argument: Vec<u8>,
    reply: Vec<u8>,
}

impl Native {
    fn argument(&mut self, index: u64, payload: &[u8]) {
        self.argument.clear();
        self.argument.extend_from_slice(&Header { index, ..Header::default() }.to_bytes());
        self.argument.extend_from_slice(payload);
        self.reply.clear();
    }

    fn apply(&mut self, index: u64, payload: &[u8]) {
        self.argument(index, payload);
        self.host.events.clear();
        self.host.timers.clear();
        self.guest.apply(&mut self.host, &self.argument, &mut self.reply).unwrap();
    }

    fn query(&mut self, index: u64, payload: &[u8]) {
        self.argument(index, payload);
        self.guest.query(&self.argument, &mut self.reply).unwrap();
    }
}

struct Wasm {
    machine: Machine,
    effects: Effects,
    reply: Vec<u8>,
}

impl Wasm {
    fn run(&mut self, is_query: bool, index: u64, payload: &[u8]) {
        let context = Context { index, ..Context::default() };
        let outcome = match is_query {
            true => self.machine.query(&context, payload),
            false => self.machine.apply(&context, payload, &mut self.effects),
        };
        match outcome.unwrap() {
            Outcome::Reply(reply) => self.reply = reply,
            other => panic!("{other:?}"),
        }
    }
}

fn main() {
    // `cargo test --benches` runs this too: then one turn will do.
    let turns = if std::env::args().any(|argument| argument == "--bench") { TURNS } else { 1 };
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let value = "v".repeat(100);
    let puts: Vec<_> = texts(|key| format!(r#"{{"Put":{{"key":"{key}","value":"{value}"}}}}"#));
    let swaps: Vec<_> = texts(|key| {
        format!(r#"{{"CompareAndSwap":{{"key":"{key}","expect":{{"Value":"{value}"}},"value":"{value}"}}}}"#)
    });
    let expires: Vec<_> = texts(|key| format!(r#"{{"Expire":{{"key":"{key}"}}}}"#));
    let gets: Vec<_> = texts(|key| format!(r#"{{"Get":{{"key":"{key}"}}}}"#));
    let ranges: Vec<_> = texts(|key| format!(r#"{{"Range":{{"start":"{key}","limit":50}}}}"#));

    let mut native = Native {
        guest: Guest::default(),
        host: statehouse_sdk::Effects::default(),
        argument: Vec::new(),
        reply: Vec::new(),
    };
    native.guest.init(&mut native.host, &[&Header::default().to_bytes()[..], b"{}"].concat()).unwrap();
    let file = std::env::var_os("KV_WASM").map(|path| std::fs::read(path).unwrap());
    let (_, bundled) = statehouse::bundled::all().iter().find(|(name, _)| *name == "kv").expect("kv is bundled");
    let module = Engine::new().unwrap().load(file.as_deref().unwrap_or(bundled), None).unwrap();
    let mut effects = Effects::default();
    statehouse::module::mark_guest_thread();
    let machine = Machine::init(&module, &Limits::default(), &Context::default(), b"{}", &mut effects).unwrap();
    let mut wasm = Wasm { machine, effects, reply: Vec::new() };

    for (index, put) in (0..).zip(&puts) {
        native.apply(index, put);
        wasm.run(false, index, put);
    }
    println!("kv, {KEYS} keys, values of 100 bytes; medians of {turns} turns, the least in brackets");
    println!("{:<26}{:>20}{:>20}{:>8}{:>8}", "", "native ns", "wasm ns", "ratio", "fuel");
    for (name, is_query, per_turn, commands) in [
        ("put", false, KEYS, &puts),
        ("compare and swap", false, KEYS, &swaps),
        ("expire", false, KEYS, &expires),
        ("get (query)", true, KEYS, &gets),
        ("range of 50 (query)", true, KEYS / 20, &ranges),
    ] {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let mut at = 0;
        let (mut natively, mut in_wasm) = (Vec::new(), Vec::new());
        let mut fuel = 0;
        for turn in 0..=turns {
            let time = |run: &mut dyn FnMut(u64, &[u8])| {
                let began = ThreadTime::now();
                (at..at + per_turn).for_each(|index| run(index, &commands[(index % KEYS) as usize]));
                began.elapsed().as_nanos() as f64 / per_turn as f64
            };
            let one = time(&mut |index, payload| match is_query {
                true => native.query(index, payload),
                false => native.apply(index, payload),
            });
            let other = time(&mut |index, payload| wasm.run(is_query, index, payload));
            assert_eq!(native.reply, wasm.reply, "the two give the same answers");
            if !is_query {
                fuel = wasm.effects.fuel_used;
            }
            at += per_turn;
            // The first turn warms up.
            if turn > 0 {
                natively.push(one);
                in_wasm.push(other);
            }
        }
        let ratios = in_wasm.iter().zip(&natively).map(|(wasm, native)| wasm / native).collect();
        let (natively, in_wasm) = (sorted(natively), sorted(in_wasm));
        let cell = |times: &[f64]| format!("{:.0} ({:.0})", times[times.len() / 2], times[0]);
        let ratio = sorted(ratios)[turns / 2];
        println!("{name:<26}{:>20}{:>20}{ratio:>8.2}{fuel:>8}", cell(&natively), cell(&in_wasm));
    }
}

fn texts(text: impl Fn(&str) -> String) -> Vec<Vec<u8>> {
    (0..KEYS).map(|key| text(&format!("key-{key:08}")).into_bytes()).collect()
}

fn sorted(mut numbers: Vec<f64>) -> Vec<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers
}
