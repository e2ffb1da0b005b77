//! The same Rust state machine, natively and in WebAssembly with fuel on: `kv`, fed the same bytes. The ratio of
//! the two is what the runtime costs a module author.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
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

fn commands() -> Vec<Vec<u8>> {
    let value = "v".repeat(100);
    (0..KEYS).map(|key| format!(r#"{{"Put":{{"key":"key-{key:08}","value":"{value}"}}}}"#).into_bytes()).collect()
}

fn apply(criterion: &mut Criterion) {
    let commands = commands();
    let mut group = criterion.benchmark_group("kv put, 10 000 keys of 100 bytes");

    let mut native = Guest::<Kv, Json>::default();
    let mut host = statehouse_sdk::Effects::default();
    let mut reply = Vec::new();
    native.init(&mut host, &[&Header::default().to_bytes()[..], b"{}"].concat()).unwrap();
    let mut index = 0;
    let mut native_put = || {
        let header = Header { index, ..Header::default() };
        let argument = [&header.to_bytes()[..], &commands[(index % KEYS) as usize]].concat();
        index += 1;
        reply.clear();
        host.events.clear();
        host.timers.clear();
        native.apply(&mut host, &argument, &mut reply).unwrap();
    };
    (0..KEYS).for_each(|_| native_put());
    group.bench_function("native", |bencher| bencher.iter(&mut native_put));

    let (_, wasm) = statehouse::bundled::all().iter().find(|(name, _)| *name == "kv").expect("kv is bundled");
    let module = Engine::new().unwrap().load(wasm, None).unwrap();
    let limits = Limits::default();
    let mut effects = Effects::default();
    let mut machine = Machine::init(&module, &limits, &Context::default(), b"{}", &mut effects).unwrap();
    let mut index = 0;
    let mut wasm_put = || {
        let context = Context { index, ..Context::default() };
        let outcome = machine.apply(&context, &commands[(index % KEYS) as usize], &mut effects).unwrap();
        index += 1;
        assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    };
    statehouse::module::mark_guest_thread();
    (0..KEYS).for_each(|_| wasm_put());
    group.bench_function("wasm", |bencher| bencher.iter(&mut wasm_put));
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
