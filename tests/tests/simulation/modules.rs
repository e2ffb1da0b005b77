//! The modules that the simulated groups run, compiled once a process; and how long a cluster keeps the file of one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use sha2::Digest;
use sha2::Sha256;
use statehouse::disk::Disk;
use statehouse::node::ModuleHost;
use statehouse::service::ErrorCode;
use statehouse::service::GroupRequest;
use statehouse::service::Service;
use statehouse::sim::Crash;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimRandom;

use crate::membership::isolate;
use crate::membership::play;
use crate::nemesis;
use crate::world::Shared;
use crate::world::now_ms;
use crate::world::sleep_ms;

/// Adds one, by four commands of one byte: `+` answers the count and emits it; `u`, `o` and `p` add one too
/// and then trap (unreachable, out of bounds, `fail`); `g` grows the memory, adds and traps; `l` adds and
/// loops until its fuel is gone. So a trap that leaves anything behind shows in the count.
const BRITTLE: &str = r#"
(module
  (import "statehouse" "emit" (func $emit (param i32 i32)))
  (import "statehouse" "fail" (func $fail (param i32 i32)))
  (import "statehouse" "write" (func $write (param i32 i32)))
  (import "statehouse" "read" (func $read (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "brittle")
  (func $count (result i64) (i64.const 8))
  (func (export "statehouse_abi_1"))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "init") (param i32 i32) (result i64) (i64.const 0))
  (func (export "apply") (param $argument i32) (param $length i32) (result i64)
    (local $command i32)
    (local.set $command
      (i32.load8_u (i32.add (local.get $argument) (i32.load (local.get $argument)))))
    (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
    (if (i32.eq (local.get $command) (i32.const 117)) (then unreachable))
    (if (i32.eq (local.get $command) (i32.const 111))
      (then (i64.store (i32.const -8) (i64.const 1))))
    (if (i32.eq (local.get $command) (i32.const 112))
      (then (call $fail (i32.const 64) (i32.const 7))))
    (if (i32.eq (local.get $command) (i32.const 103))
      (then (drop (memory.grow (i32.const 1))) (i64.store (i32.const 70000) (i64.const 7)) unreachable))
    (if (i32.eq (local.get $command) (i32.const 108)) (then (loop $for_ever (br $for_ever))))
    (call $emit (i32.const 0) (i32.const 8))
    (i64.const 8))
  (func (export "query") (param i32 i32) (result i64) (i64.const 8))
  (func (export "snapshot") (result i64)
    (call $write (i32.const 0) (i32.const 8))
    (i64.const 0))
  (func (export "restore") (result i64)
    (local $have i32) (local $got i32)
    (loop $more
      (local.set $got (call $read (local.get $have) (i32.sub (i32.const 8) (local.get $have))))
      (local.set $have (i32.add (local.get $have) (local.get $got)))
      (br_if $more (i32.and (i32.lt_u (local.get $have) (i32.const 8)) (i32.gt_u (local.get $got) (i32.const 0)))))
    (i64.const 0))
)
"#;

/// The commands of `brittle` that trap.
pub const TRAPS: [&[u8]; 5] = [b"u", b"o", b"p", b"g", b"l"];

/// One process's modules.
pub struct Modules {
    pub host: Arc<ModuleHost>,
    pub kv: Bytes,
    pub counter: Bytes,
    pub brittle: Bytes,
    pub lines: Bytes,
    pub znode_tree: Bytes,
}

/// The modules, made at the first call.
pub fn modules() -> &'static Modules {
    static MODULES: OnceLock<Modules> = OnceLock::new();
    MODULES.get_or_init(|| Modules {
        host: Arc::new(ModuleHost::new(None).expect("this host can run modules")),
        kv: bundled("kv"),
        counter: bundled("counter"),
        brittle: Bytes::from(wat::parse_str(BRITTLE).expect("brittle is valid")),
        lines: Bytes::from_static(statehouse_tests::modules::lines()),
        znode_tree: bundled("znode-tree"),
    })
}

fn bundled(name: &str) -> Bytes {
    let (_, wasm) = statehouse::bundled::all().iter().find(|(bundled, _)| *bundled == name).expect("it is bundled");
    Bytes::from_static(wasm)
}

/// `counter` as another file.
fn counter_and(note: u8) -> (Bytes, PathBuf) {
    // A custom section, `n`.
    let wasm = [modules().counter.as_ref(), &[0, 3, 1, b'n', note]].concat();
    let digest: String = Sha256::digest(&wasm).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = PathBuf::from(format!("/data/modules/{digest}.wasm"));
    (Bytes::from(wasm), path)
}

async fn add(world: &Shared, random: &mut SimRandom, name: &'static str, wasm: &Bytes) {
    let added = world.surely(random, "module_add", |node| {
        let wasm = wasm.clone();
        async move { node.module_add(name.to_string(), wasm).await }
    });
    added.await;
}

async fn remove(world: &Shared, random: &mut SimRandom, name: &'static str) {
    world.surely(random, "module_remove", |node| async move { node.module_remove(name.to_string()).await }).await;
}

async fn run(world: &Shared, random: &mut SimRandom, module: &'static str) {
    let created = world.surely(random, "group_create", |node| async move {
        let (name, module) = (format!("of {module}"), module.to_string());
        node.group_create(GroupRequest { name, module, ..GroupRequest::default() }).await
    });
    created.await;
}

/// A node was cut off between the moment in which the catalog named the module that was pushed there and the one in which its file was stored again:
/// whoever pushed it was told `unavailable`, which says that nothing was done.
#[test]
fn a_push_that_the_catalog_has_taken_is_not_called_undone() {
    play(12, async |world| {
        let mut random = SimRandom::new(12);
        let (wasm, _) = counter_and(3);
        let catalog = world.cluster.node(1).unwrap().catalog().clone();
        let before = catalog.applied();
        let pushed = world.cluster.call(1, move |node| async move { node.module_add("new".to_string(), wasm).await });
        let cut = async {
            while catalog.applied() == before {
                LifeRuntime::sleep(Duration::from_micros(10)).await;
            }
            isolate(world, 1);
        };
        let (told, ()) = futures_util::future::join(pushed, cut).await;
        let error = told.unwrap().expect_err("nobody else answers");
        assert_eq!(error.code, ErrorCode::OutcomeUnknown, "{error}");
        for said in ["new is in the catalog", "node 2", "node 3", "push the same file again"] {
            assert!(error.detail.contains(said), "{error}");
        }
        // Where there is no leader it is said before anything is sent.
        let (wasm, _) = counter_and(4);
        let began_ms = now_ms();
        let pushed = world.cluster.call(1, move |node| async move { node.module_add("next".to_string(), wasm).await });
        let error = pushed.await.unwrap().expect_err("no leader takes its name");
        assert!(
            error.code == ErrorCode::NoLeader && now_ms() < began_ms + 10_000,
            "{error}, {} ms",
            now_ms() - began_ms
        );
        world.cluster.network().mend();
        let named = world.surely(&mut random, "module_list", |node| async move { node.module_list().await }).await;
        assert_eq!(named.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["new"]);
        add(world, &mut random, "new", &counter_and(3).0).await;
    });
}

/// A module was removed, and its file stayed on every node for ever, with its compiled code and what was loaded of it.
#[test]
fn the_file_of_a_removed_module_goes_everywhere_unless_it_has_another_name() {
    const LONG_MS: u64 = 12 * 60_000;
    if crate::number("SEED").is_some() {
        return;
    }
    play(11, async |world| {
        let mut random = SimRandom::new(11);
        let ((gone, gone_path), (kept, kept_path)) = (counter_and(1), counter_and(2));
        let holders = |path: &PathBuf| {
            let holds = |id: &u64| world.cluster.disk(*id).unwrap().exists(path).unwrap();
            world.cluster.ids().into_iter().filter(holds).collect::<Vec<_>>()
        };
        for (name, wasm) in [("gone", &gone), ("kept", &kept), ("also kept", &kept)] {
            add(world, &mut random, name, wasm).await;
        }
        run(world, &mut random, "kept").await;
        while holders(&gone_path).len() < 3 {
            sleep_ms(20).await;
        }
        world.cluster.crash(3, Crash::Process);
        remove(world, &mut random, "gone").await;
        remove(world, &mut random, "also kept").await;
        sleep_ms(LONG_MS).await;
        assert_eq!((holders(&gone_path), holders(&kept_path)), (vec![3], vec![1, 2, 3]));
        nemesis::start(world, 3).await;
        sleep_ms(LONG_MS).await;
        assert_eq!((holders(&gone_path), holders(&kept_path)), (vec![], vec![1, 2, 3]));
        add(world, &mut random, "here again", &gone).await;
        run(world, &mut random, "here again").await;
        while holders(&gone_path).len() < 3 {
            sleep_ms(20).await;
        }
    });
}
