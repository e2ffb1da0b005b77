//! Debian's ZooKeeper 3.8 and `statehouse keeper` are asked the same, over sockets: replies, notifications, trees and
//! stats must be equal byte for byte, after zxids and session ids are mapped one to one and in order, and times by whether
//! there is one.
//!
//! ```sh
//! cargo test -p statehouse-tests --test system against_zookeeper -- --nocapture
//! PEERS_OPERATIONS=1000000 PEERS_SEED=7 cargo test -p statehouse-tests --test system against_zookeeper -- --nocapture
//! ```
//!
//! A round has its own clients and its own folder; its seed is the first seed and its number. A round that fails is made
//! shorter as long as it still fails, and printed with the command that repeats it.
//!
//! # The list of differences
//!
//! What is not compared, or not asked for, and why:
//!
//! * The zxid of a notification: of the change here, as since ZooKeeper 3.9; -1 in 3.8.
//! * The order of children, of whoAmI's users, of an ACL's entries (`auth` becomes several), and of notifications when a
//!   session ends: a hash table's there.
//! * `exists` of, and notifications about, a node that one may not read: 3.8 tells, 3.9.2 and we do not. So all that takes
//!   away permission to read is in folders of the name `s`, whose notifications are left out, and where nobody watches.
//! * checkWatches finds the watches of others as well in 3.8, only one's own in 3.9 and here.
//!   Of a path that does not begin with `/` 3.8 fails over it while anybody watches recursively.
//! * A client that watches a path in several ways: each counts since 3.9 and here, the last one in 3.8. So the last letter of
//!   a path says in which way it is watched. removeWatches for data or children leaves half of a persistent watch in 3.8,
//!   and is not about such a one since 3.9 and here.
//! * Enforced quotas: ZooKeeper looks at what was applied when it takes a request in, so that those sent behind one another
//!   pass or not as it happens. So where they are enforced, each request waits for the one before it.
//! * setACL: what ZooKeeper takes in before it has applied it goes by the list before. So nothing is sent behind one until it is
//!   answered.
//! * `check` outside of a multi: `Unimplemented` here, as in 3.9; 3.8 fails over its answer.
//! * deleteContainer from a client: 3.8 asks for no permission, we for DELETE on the parent.
//! * create2 in a multi: 3.8 answers it as create, without the stat. createContainer there with other flags: 3.8
//!   goes by the flags, 3.9 and we by the operation. createTTL with flags that are no TTL's: 3.8 fails over it.
//! * A wrong password for a session whose client is connected: 3.8 closes that client's connection first.
//! * Characters beyond the basic plane, which no name may have: ZooKeeper repeats them as two of three bytes each.
//! * Text that is not UTF-8: ZooKeeper reads U+FFFD for what it cannot read, which no path may have in it, and goes on; here such a
//!   path is no node's, whatever its parent.
//! * createSession as a request of a client: ZooKeeper takes it for one of its own.
//! * Protocol versions 10 and 11 in a handshake: ClickHouse's, which ZooKeeper does not know.
//! * `/zookeeper/config`: what a server says of its cluster.

mod compare;
mod dice;
mod play;
mod servers;

use std::time::Duration;
use std::time::Instant;

use dice::Dice;
use dice::Step;
use play::Board;
use statehouse_tests::report;

const OPERATIONS: usize = 100_000;
const SEED: u64 = 1;
/// The second half's first seed is so much higher.
const OTHER_SEEDS: u64 = 1_000_000;
/// Requests of a round.
const ROUND: usize = 2_000;
/// One of so many rounds waits for the end of a session, which takes a second or two.
const EXPIRY_EVERY: u64 = 5;
/// One of so many rounds waits for each answer, and is shorter.
const ONE_BY_ONE_EVERY: u64 = 4;
const ROUND_ONE_BY_ONE: usize = 400;
/// How long a failing round is made shorter.
const SHRINK_TIME: Duration = Duration::from_secs(90);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// A folder that no other round has; always of the same length.
fn folder(number: u64) -> String {
    format!("/p{number:06}")
}

fn is_one_by_one(seed: u64) -> bool {
    seed.is_multiple_of(ONE_BY_ONE_EVERY)
}

fn round(seed: u64, operations: usize, top: &str) -> Vec<Step> {
    let mut dice = Dice::new(seed, is_one_by_one(seed), top);
    let mut steps = dice.steps(operations);
    if seed.is_multiple_of(EXPIRY_EVERY) {
        let at = steps.len() / 2;
        steps.insert(at, dice.expiry());
    }
    steps
}

#[test]
fn zookeeper_and_statehouse_cannot_be_told_apart() {
    if let Some(why) = servers::missing() {
        report(format_args!("SKIPPED: the comparison with ZooKeeper: {why}"));
        return;
    }
    let operations = usize::try_from(setting("PEERS_OPERATIONS", OPERATIONS as u64)).unwrap();
    let seed = setting("PEERS_SEED", SEED);
    if std::env::var_os("PEERS_SEED").is_some() {
        return compare(seed, operations);
    }
    // Two pairs of servers, as they mostly wait.
    std::thread::scope(|scope| {
        scope.spawn(|| compare(seed, operations.div_ceil(2)));
        compare(seed + OTHER_SEEDS, operations / 2);
    });
}

/// Asks two servers of their own so much.
fn compare(seed: u64, operations: usize) {
    let folder_of_data = tempfile::tempdir().unwrap();
    let servers = servers::start(folder_of_data.path());
    let mut board = Board::new([servers[0].address, servers[1].address]);
    let started = Instant::now();
    let mut number = 0;
    while board.asked < operations {
        let seed = seed + number;
        let size = if is_one_by_one(seed) { ROUND_ONE_BY_ONE } else { ROUND };
        let size = size.min(operations - board.asked);
        let top = folder(number);
        let steps = round(seed, size, &top);
        if let Err(failure) = board.play(&steps) {
            for server in &servers {
                report(format_args!("{} said at last:\n{}", server.name, server.said()));
            }
            let step = steps.get(failure.at);
            let repeat = format!(
                "PEERS_SEED={seed} PEERS_OPERATIONS={size} cargo test -p statehouse-tests --test system against_zookeeper -- --nocapture"
            );
            report(format_args!("{}\nat step {}: {step:?}\nrepeat with: {repeat}", failure.difference, failure.at));
            let first = steps[..(failure.at + 1).min(steps.len())].to_vec();
            let short = shrink(&mut board, first, &kind(&failure.difference), &top);
            panic!("{}\nat step {}: {step:?}\nrepeat with: {repeat}\n{short}", failure.difference, failure.at);
        }
        number += 1;
    }
    report(format_args!(
        "{} requests to ZooKeeper and to Statehouse in {number} rounds from seed {seed}: no difference; {} s",
        board.asked,
        started.elapsed().as_secs()
    ));
}

/// What a difference is about, whatever the numbers.
fn kind(difference: &str) -> String {
    difference.lines().next().unwrap_or_default().split(['[', '{']).next().unwrap_or_default().to_owned()
}

/// Leaves out what can be left out so that there is still a difference of this kind; says what is left.
fn shrink(board: &mut Board, mut steps: Vec<Step>, wanted: &str, top: &str) -> String {
    let deadline = Instant::now() + SHRINK_TIME;
    let mut tries = 0;
    let mut last = None;
    let mut fails = |steps: &[Step]| {
        tries += 1;
        let new = folder(900_000 + tries);
        let steps: Vec<_> = steps.iter().map(|step| step.below(top, &new)).collect();
        let failure = board.play(&steps).err().filter(|failure| kind(&failure.difference) == wanted)?;
        Some((failure.at, failure.difference.replace(&new, top)))
    };
    let mut piece = steps.len() / 2;
    while piece > 0 && Instant::now() < deadline {
        let mut at = 0;
        let mut removed = false;
        // The first step makes the folder.
        while at + 1 < steps.len() && Instant::now() < deadline {
            let mut fewer = steps[..=at].to_vec();
            fewer.extend_from_slice(steps.get(at + 1 + piece..).unwrap_or_default());
            match fails(&fewer) {
                Some((failed_at, difference)) => {
                    fewer.truncate(failed_at + 1);
                    steps = fewer;
                    last = Some(difference);
                    removed = true;
                }
                None => at += piece,
            }
        }
        piece = if removed && piece == 1 { 1 } else { piece / 2 };
    }
    let Some(difference) = last else {
        return "(played again, there is no difference: it depends on what was before, or on time)".to_owned();
    };
    let lines: Vec<_> = steps.iter().map(|step| format!("  {step:?}")).collect();
    format!("made shorter in {tries} tries, {} steps:\n{}\n{difference}", lines.len(), lines.join("\n"))
}
