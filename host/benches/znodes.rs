//! What a znode costs in the module `znode-tree` as nodes run it: linear memory, fuel, CPU time. `cargo bench --bench znodes`,
//! with another number of nodes behind `--`. The environment's `ZNODES_WASM` names another module file to compare with.
//!
//! The nodes are those of `tests/keeper/compare --memory`: all in one pool, names of 12 bytes, 100 bytes of data.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use cpu_time::ThreadTime;
use statehouse::module::Context;
use statehouse::module::Effects;
use statehouse::module::Engine;
use statehouse::module::Limits;
use statehouse::module::Machine;
use statehouse::module::Outcome;

const DATA_BYTES: usize = 100;
/// In November 2026.
const NOW_MS: u64 = 1_795_000_000_000;
/// Nodes of the session that ends: as many as go in one entry.
const ENDED: u64 = 50_000;
const CREATE: i32 = 1;
const DELETE: i32 = 2;
const EXISTS: i32 = 3;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const GET_CHILDREN: i32 = 8;

struct Bed {
    machine: Machine,
    effects: Effects,
    index: u64,
}

impl Bed {
    fn run(&mut self, operation: i32, body: &[u8]) {
        self.run_as(0, operation, body);
    }

    fn run_as(&mut self, session: u64, operation: i32, body: &[u8]) {
        self.index += 1;
        let context = Context { index: self.index, time_ms: NOW_MS + self.index, session, ..Context::default() };
        // The version of calls, and no identities.
        let call = [&[1], &operation.to_be_bytes()[..], &[0, 0], body].concat();
        let outcome = match operation {
            EXISTS | GET_DATA | GET_CHILDREN => self.machine.query(&context, &call),
            _ => self.machine.apply(&context, &call, &mut self.effects),
        };
        let Outcome::Reply(reply) = outcome.unwrap() else { panic!("operation {operation} fails") };
        assert!(reply.starts_with(&[0; 4]), "operation {operation} is answered {reply:?}");
    }

    fn create(&mut self, path: &str, data: &[u8]) {
        self.create_as(0, path, data, 0);
    }

    fn create_as(&mut self, session: u64, path: &str, data: &[u8], flags: u32) {
        let acl = [&1_u32.to_be_bytes()[..], &31_u32.to_be_bytes(), &buffer(b"world"), &buffer(b"anyone")].concat();
        let parts = [&buffer(path.as_bytes()), &buffer(data), &acl[..], &flags.to_be_bytes()];
        self.run_as(session, CREATE, &parts.concat());
    }
}

fn buffer(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn path(number: u64) -> String {
    format!("/memory/pool/key-{number:08}")
}

fn main() {
    // `cargo test --benches` runs this too.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let count = std::env::args().find_map(|argument| argument.parse().ok());
    let count: u64 = count.unwrap_or(if is_bench { 1_000_000 } else { 1_000 });
    let file = std::env::var_os("ZNODES_WASM").map(|path| std::fs::read(path).unwrap());
    let (_, bundled) =
        statehouse::bundled::all().iter().find(|(name, _)| *name == "znode-tree").expect("it is bundled");
    let module = Engine::new().unwrap().load(file.as_deref().unwrap_or(bundled), None).unwrap();
    let mut effects = Effects::default();
    statehouse::module::mark_guest_thread();
    let limits = Limits { memory_bytes_max: 2 << 30, fuel_per_entry: 1 << 40, ..Limits::default() };
    let machine = Machine::init(&module, &limits, &Context::default(), b"{}", &mut effects).unwrap();
    let mut bed = Bed { machine, effects, index: 0 };
    bed.create("/memory", b"");
    bed.create("/memory/pool", b"");
    let before = bed.machine.memory_bytes();
    println!("{count} znodes; CPU time, fuel and growth of the linear memory, each");
    println!("{:<26}{:>10}{:>10}{:>10}", "", "ns", "fuel", "bytes");
    let scattered = |number: u64| path(number * 7_919 % count);
    let (mut old, mut wide) = (buffer(&[7; DATA_BYTES]), buffer(&[9; DATA_BYTES + 1]));
    old.extend([0xff; 4]);
    wide.extend([0xff; 4]);
    let mut time = |what: &str, count: u64, run: &mut dyn FnMut(&mut Bed, u64)| {
        let (began, memory) = (ThreadTime::now(), bed.machine.memory_bytes());
        let mut fuel = 0;
        for number in 0..count {
            bed.effects.fuel_used = 0;
            run(&mut bed, number);
            fuel += bed.effects.fuel_used;
        }
        let ns = began.elapsed().as_nanos() as u64 / count;
        println!("{what:<26}{ns:>10}{:>10}{:>10}", fuel / count, (bed.machine.memory_bytes() - memory) / count);
    };
    let at = |number: u64| buffer(scattered(number).as_bytes());
    let read = |number: u64| [&at(number)[..], &[0]].concat();
    time("create", count, &mut |bed, number| bed.create(&path(number), &[7; DATA_BYTES]));
    time("exists", count, &mut |bed, number| bed.run(EXISTS, &read(number)));
    time("get", count, &mut |bed, number| bed.run(GET_DATA, &read(number)));
    let few = &buffer(b"/zookeeper")[..];
    time("list, two children", count, &mut |bed, _| bed.run(GET_CHILDREN, &[few, &[0]].concat()));
    time("set, as long", count, &mut |bed, number| bed.run(SET_DATA, &[&at(number)[..], &old].concat()));
    time("set again", count, &mut |bed, number| bed.run(SET_DATA, &[&at(number)[..], &old].concat()));
    time("set, a byte longer", count, &mut |bed, number| bed.run(SET_DATA, &[&at(number)[..], &wide].concat()));
    time("get, scattered after sets", count, &mut |bed, number| bed.run(GET_DATA, &read(number)));
    time("delete", count, &mut |bed, number| bed.run(DELETE, &[&at(number)[..], &[0xff; 4]].concat()));
    let session = 7;
    for number in 0..ENDED {
        bed.create_as(session, &format!("/memory/mine-{number:08}"), b"", 1);
    }
    bed.machine
        .session_end(&Context { index: bed.index + 1, session, ..Context::default() }, &mut bed.effects)
        .unwrap();
    println!("{:<26}{:>20}", "end of a session, a node", bed.effects.fuel_used / ENDED);
    println!(
        "linear memory: {} MiB, {} MiB of it for the nodes",
        bed.machine.memory_bytes() >> 20,
        (bed.machine.memory_bytes() - before) >> 20
    );
}
