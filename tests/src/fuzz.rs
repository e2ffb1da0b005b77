//! What the fuzzer does with bytes, and what a test does with random ones: they play the clients of `znode_tree::fuzz`
//! at the bundled module's adapter inside WebAssembly, called as the gateway calls it, beside the same adapter as a
//! plain Rust type. What the one answers to a call the other answers, byte for byte.

use std::sync::LazyLock;

use statehouse::module::AdapterCall;
use statehouse::module::AdapterInstance;
use statehouse::module::Engine;
use statehouse::module::Limits;
use statehouse::module::Module;
use statehouse::module::on_guest_stack;
use statehouse_sdk::Header;
use statehouse_sdk::Reject;
use statehouse_sdk::adapter::Adapter;
use statehouse_sdk::adapter::Asked;
use statehouse_sdk::adapter::Input;
use statehouse_sdk::adapter::Io;
use znode_tree::adapter::Kept;
use znode_tree::adapter::ZooKeeper;
use znode_tree::fuzz::Played;

/// What no clients can make an instance hold. One that wants more traps.
const MEMORY_BYTES_MAX: u64 = 128 << 20;

static MODULE: LazyLock<Module> =
    LazyLock::new(|| Engine::new().unwrap().load(crate::modules::bundled("znode-tree"), None).unwrap());

/// An adapter, twice.
struct Twins {
    inside: AdapterInstance,
    native: ZooKeeper,
}

impl Adapter for Twins {
    fn open(settings: &[u8], io: &mut Io<'_>) -> Result<Self, Reject> {
        let flags = u32::from(io.has_leader()) | u32::from(io.leads()) << 1;
        let call = AdapterCall { index: io.applied(), time_ms: io.time_ms(), seed: io.random_u64(), flags };
        let limits = Limits { memory_bytes_max: MEMORY_BYTES_MAX, ..Limits::default() };
        let (inside, asked) = AdapterInstance::open(&MODULE, &limits, &call, settings, &mut Vec::new()).unwrap();
        let (header, _) = Header::split(&call.header())?;
        let mut natively_asked = Vec::new();
        let native = ZooKeeper::open(settings, &mut Io::new(header, flags, &mut natively_asked))?;
        assert_eq!(asked, natively_asked, "what it asked in the beginning");
        for asked in Asked::decode_all(&asked).unwrap() {
            match asked {
                Asked::SetTimer { id, at_ms } => io.set_timer(id, at_ms),
                other => panic!("nobody is there yet, and it asked for {other:?}"),
            }
        }
        Ok(Self { inside, native })
    }

    fn input(&mut self, _: &mut Io<'_>, _: Input<'_>) {
        unreachable!("inputs come by steps");
    }

    fn step(&mut self, argument: &[u8], out: &mut Vec<u8>) -> Result<(), Reject> {
        let (header, records) = Header::split(argument)?;
        let flags = u32::from_le_bytes(argument[4..8].try_into().unwrap());
        let call = AdapterCall { index: header.index, time_ms: header.time_ms, seed: header.seed.0, flags };
        let asked = self.inside.step(&call, records, &mut Vec::new()).unwrap();
        self.native.step(&[&call.header(), records].concat(), out)?;
        assert!(
            asked == *out,
            "inside WebAssembly:\n{:?}\nnatively:\n{:?}",
            Asked::decode_all(&asked),
            Asked::decode_all(out)
        );
        Ok(())
    }
}

impl Played for Twins {
    fn kept(&self) -> Kept {
        self.native.kept()
    }
}

/// [`znode_tree::fuzz::rounds`], inside WebAssembly.
///
/// # Panics
/// As there; and if the module traps, refuses a call, asks for anything else than natively, or its memory grows beyond
/// 128 MiB.
pub fn adapter(bytes: &[u8]) {
    on_guest_stack(|| znode_tree::fuzz::rounds::<Twins>(bytes, 1, |_| {})).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes, the same ones in every run.
    fn random() -> impl FnMut() -> Vec<u8> {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        move || (0..random() % 3_000).map(|_| random() as u8).collect()
    }

    /// A first round of fuzzing on every test run.
    #[test]
    fn random_clients_are_answered_inside_webassembly_as_natively() {
        let count = std::env::var("STATEHOUSE_SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
        let mut random = random();
        for _ in 0..count {
            adapter(&random());
        }
    }

    #[test]
    fn clients_that_mean_no_good_take_no_more_memory_the_hundredth_time() {
        let mut random = random();
        for _ in 0..10 {
            let bytes = random();
            let mut sizes = Vec::new();
            let look = |twins: &Twins| sizes.push(twins.inside.memory_bytes());
            on_guest_stack(|| znode_tree::fuzz::rounds(&bytes, 100, look)).unwrap();
            let (tenth, last) = (sizes[9], sizes[99]);
            assert!(last <= tenth && tenth <= 2 << 20, "linear memory, round by round: {sizes:?}");
        }
    }
}
