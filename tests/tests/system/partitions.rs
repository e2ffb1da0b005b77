//! The network between real processes: cut in one direction or both, slow, and breaking.

use std::time::Duration;

use statehouse_tests::cluster::Cluster;
use statehouse_tests::load::Load;
use statehouse_tests::load::assert_exactly_once;
use statehouse_tests::modules;
use statehouse_tests::proxy::Proxy;
use statehouse_tests::wait;

/// The leader is cut off, again and again, altogether and in one direction only, under load; clients speak to all three nodes,
/// the one that is cut off included. What was acknowledged is there, once.
#[test]
fn leaders_are_cut_off_under_load_and_nothing_acknowledged_is_lost_or_doubled() {
    let mut cluster = Cluster::prepare(3, &[]);
    let network = Proxy::before(&mut cluster);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    let load = Load::start(&cluster.addresses(), "kv", 6);
    load.wait_for(50);
    for round in 0..4 {
        let leader = cluster.leader("kv");
        let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
        match round {
            // It hears the others, and they do not hear it.
            1 => others.iter().for_each(|other| network.cut(leader, *other)),
            // They ask it in vain, and follow it all the same; then one of them can follow it no more.
            2 => {
                others.iter().for_each(|other| network.cut(*other, leader));
                load.wait_for(50);
                network.cut(leader, others[0]);
            }
            _ => network.isolate(leader),
        }
        load.wait_for(100);
        if round != 2 {
            wait::until("another node leads", || {
                let view = cluster.node(others[0]).group("kv");
                match view["leader"].as_u64() {
                    Some(led) if led != leader => Ok(()),
                    _ => Err(view),
                }
            });
        }
        network.mend();
        cluster.leader("kv");
        load.wait_for(20);
    }
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}

/// Far apart, over lines that break all the time: slower, and nothing else.
#[test]
fn nodes_that_are_far_apart_on_lines_that_break_lose_nothing() {
    let mut cluster = Cluster::prepare(3, &[]);
    let network = Proxy::before(&mut cluster);
    cluster.start_all();
    cluster.deploy("kv", modules::bundled("kv"));
    network.delay(Duration::from_millis(30));
    let load = Load::start(&cluster.addresses(), "kv", 6);
    for _ in 0..20 {
        load.wait_for(15);
        network.break_all();
    }
    network.delay(Duration::ZERO);
    load.wait_for(50);
    let told = load.stop();
    assert_exactly_once(&cluster.addresses(), "kv", &told);
    cluster.assert_equal_state("kv");
}
