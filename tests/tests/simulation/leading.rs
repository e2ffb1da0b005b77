//! Who is handed the lead and who is not, and what a leader that was replaced still does.

use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use statehouse::membership::ChangeKind;
use statehouse::membership::ChangeState;
use statehouse::service::ApplyRequest;
use statehouse::service::ErrorCode;
use statehouse::service::Service;
use statehouse::sim::Crash;
use statehouse::sim::LifeRuntime;
use statehouse::sim::SimRandom;
use statehouse::types::NodeId;

use crate::membership::COUNTER;
use crate::membership::isolate;
use crate::membership::leader_among;
use crate::membership::play;
use crate::nemesis;
use crate::on_guest_thread;
use crate::repair::with_a_single;
use crate::scenario;
use crate::world::Shared;
use crate::world::now_ms;
use crate::world::sleep_ms;

const ADD: &[u8] = br#"{"Add":1}"#;

fn add(group: &str, timeout_ms: u64) -> ApplyRequest {
    let command = Bytes::from_static(ADD);
    ApplyRequest { group: group.to_string(), session: None, sequence: None, command, timeout_ms: Some(timeout_ms) }
}

/// Lets a node join that stays a learner.
async fn with_a_learner(world: &Shared, learner: NodeId) {
    world.cluster.let_in(learner);
    nemesis::start(world, learner).await;
    let began_ms = now_ms();
    loop {
        let kind = ChangeKind::NodeAdd { node: learner, learner: true };
        let begun = world.cluster.call(1, move |node| async move { node.change_begin(kind).await }).await.unwrap();
        let Ok(change) = begun else {
            assert!(now_ms() < began_ms + 20_000, "{begun:?}");
            sleep_ms(50).await;
            continue;
        };
        loop {
            let got = world.cluster.call(1, move |node| async move { node.change_get(change.id, 1000).await }).await;
            match got.unwrap() {
                Ok(change) if change.state == ChangeState::Done => return,
                got => assert!(now_ms() < began_ms + 20_000, "{got:?}"),
            }
        }
    }
}

/// Found by reading: whoever asked a learner to lead (`rqld` does, on any node) ended the leader's term. openraft tells voters only that
/// a leader hands over, and refuses writes from then on.
#[test]
fn a_learner_that_is_asked_to_lead_harms_nobody() {
    play(3, async |world| {
        let mut random = SimRandom::new(3);
        scenario::set_up(world, &mut random).await;
        let learner = world.cluster.out().first().copied().unwrap();
        with_a_learner(world, learner).await;
        let leader = leader_among(world, &world.cluster.ids()).await;
        let at = |id: NodeId| world.cluster.node(id).unwrap().group_by_id(COUNTER).unwrap();
        let term = at(leader).standing().term;
        let asked = world.cluster.call(learner, |node| crate::leading::take_lead(node.group_by_id(COUNTER).unwrap()));
        let refused = asked.await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("learner"), "{refused}");
        for _ in 0..5 {
            world
                .cluster
                .call(leader, |node| async move { node.apply(add("counter", 1000)).await })
                .await
                .unwrap()
                .unwrap();
        }
        assert_eq!((at(leader).standing().term, at(leader).leads()), (term, true));
        // Nor does a voter become one by being added.
        let kind = ChangeKind::NodeAdd { node: leader, learner: true };
        let begun = world.cluster.call(1, move |node| async move { node.change_begin(kind).await }).await.unwrap();
        assert_eq!(begun.unwrap_err().code, ErrorCode::AlreadyExists);
    });
}

/// Boxed where the types are still parameters: with the real ones the compiler does not see that it is `Send`.
fn take_lead<P, T>(
    group: std::sync::Arc<statehouse::group::Group<P, T>>,
) -> futures_util::future::BoxFuture<'static, statehouse::service::ServiceResult<()>>
where
    P: statehouse::platform::Platform,
    T: statehouse::peer::Transport,
{
    Box::pin(async move { group.take_lead().await })
}

/// A node that lost its disk and has not caught up refuses to take the lead. Its leader had given it up by then, and took no writes until
/// somebody else was elected.
#[test]
fn a_leader_does_not_hand_over_to_a_node_that_does_not_vote_yet() {
    let mut refused = 0;
    for seed in 1..=4 {
        let counted = std::sync::atomic::AtomicU32::new(0);
        play(seed, async |world| {
            let mut random = SimRandom::new(seed);
            scenario::set_up(world, &mut random).await;
            let leader = leader_among(world, &world.cluster.ids()).await;
            let lost = leader % 3 + 1;
            let at = |id: NodeId| world.cluster.node(id).unwrap().group_by_id(COUNTER).unwrap();
            let term = at(leader).standing().term;
            world.cluster.lose_disk(lost);
            nemesis::start(world, lost).await;
            let began_ms = now_ms();
            loop {
                assert!(now_ms() < began_ms + 20_000, "node {lost} is not handed the lead");
                let transfer = move |node: statehouse::sim::SimNode| async move {
                    node.leader_transfer("counter".to_string(), Some(lost)).await
                };
                match world.cluster.call(leader, transfer).await.unwrap() {
                    Ok(_) => break,
                    Err(error) => {
                        let text = error.to_string();
                        if text.contains("does not vote") {
                            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            assert_eq!((at(leader).standing().term, at(leader).leads()), (term, true), "{text}");
                            let added =
                                |node: statehouse::sim::SimNode| async move { node.apply(add("counter", 1000)).await };
                            world.cluster.call(leader, added).await.unwrap().unwrap();
                        }
                    }
                }
                sleep_ms(5).await;
            }
        });
        refused += counted.into_inner();
    }
    assert!(refused > 0, "it was asked only when it voted already");
}

/// A leader that was cut off saw a session's time run out, and asked whoever led by then to end it: the session's client had found the
/// other node long before.
#[test]
fn a_leader_of_the_past_ends_no_session() {
    for (seed, timeout_ms) in (1..=6).flat_map(|seed| [400, 550, 700, 900].map(|timeout_ms| (seed, timeout_ms))) {
        play(seed, async |world| {
            let mut random = SimRandom::new(seed);
            scenario::set_up(world, &mut random).await;
            let ids = world.cluster.ids();
            let old = leader_among(world, &ids).await;
            let others: Vec<NodeId> = ids.iter().copied().filter(|id| *id != old).collect();
            let session = world.open_session(&mut random, "counter", timeout_ms).await;
            let (id, secret) = (session.id, session.secret);
            let touch = |at: NodeId| {
                world
                    .cluster
                    .call(at, move |node| async move { node.session_touch("counter".to_string(), id, secret).await })
            };
            while touch(others[0]).await.unwrap().is_err() || touch(others[1]).await.unwrap().is_err() {
                sleep_ms(5).await;
            }
            isolate(world, old);
            let leads = |id: &NodeId| world.cluster.node(*id).unwrap().group_by_id(COUNTER).unwrap().leads();
            let mut mended_ms = None;
            // At both, so that whichever leads has heard of it.
            while mended_ms.is_none_or(|at| now_ms() < at + 3000) {
                for id in &others {
                    touch(*id).await.unwrap().expect("the session lives");
                }
                if mended_ms.is_none() && others.iter().any(leads) {
                    world.cluster.network().mend();
                    mended_ms = Some(now_ms());
                }
                sleep_ms(20).await;
            }
        });
    }
}

/// A follower took signs of life for a session whatever had become of it: one that had ended while the follower was cut off, and one that no
/// leader could hear of.
#[test]
fn a_touch_that_no_leader_hears_of_is_no_success() {
    for seed in 1..=4 {
        play(seed, async |world| {
            let mut random = SimRandom::new(seed);
            scenario::set_up(world, &mut random).await;
            let ids = world.cluster.ids();
            let leader = leader_among(world, &ids).await;
            let apart = ids.iter().copied().find(|id| *id != leader).unwrap();
            let session = world.open_session(&mut random, "counter", 60_000).await;
            let (id, secret) = (session.id, session.secret);
            let touch = |at: NodeId| {
                world
                    .cluster
                    .call(at, move |node| async move { node.session_touch("counter".to_string(), id, secret).await })
            };
            // Also at nodes that have not applied its beginning yet.
            for at in &ids {
                touch(*at).await.unwrap().unwrap();
            }
            isolate(world, apart);
            let error = touch(apart).await.unwrap().unwrap_err();
            assert!(matches!(error.code, ErrorCode::NoLeader | ErrorCode::Timeout), "{error}");
            let closed = world
                .cluster
                .call(leader, move |node| async move { node.session_close("counter".to_string(), id, secret).await });
            closed.await.unwrap().unwrap();
            let error = touch(apart).await.unwrap().unwrap_err();
            assert!(matches!(error.code, ErrorCode::NoLeader | ErrorCode::Timeout), "{error}");
            world.cluster.network().mend();
            // The first answer that comes is the truth.
            let error = loop {
                let error = touch(apart).await.unwrap().unwrap_err();
                if !matches!(error.code, ErrorCode::NoLeader | ErrorCode::Timeout) {
                    break error;
                }
            };
            assert_eq!(error.code, ErrorCode::SessionNotFound, "{error}");
        });
    }
}

/// A command was passed on to the only node that holds the group, which did it and was lost before it had said so. The client was told
/// that nothing had been done, and used its number for another command.
#[test]
fn a_command_that_was_passed_on_and_lost_may_have_been_done() {
    on_guest_thread(|| {
        statehouse::module::mark_guest_thread();
        for seed in 1..=4 {
            LifeRuntime::with_seed(seed).block_on(async {
                let mut random = SimRandom::new(seed);
                let (world, holder) = with_a_single(seed, &mut random).await;
                scenario::become_ready(&world, now_ms()).await;
                let session = world.open_session(&mut random, "single", 60_000).await;
                let elsewhere = holder % 3 + 1;
                let request = ApplyRequest {
                    session: Some((session.id, session.secret)),
                    sequence: Some(1),
                    ..add("single", 1500)
                };
                let view = world
                    .surely(&mut random, "group_get", |node| async move { node.group_get("single".to_string()).await });
                let id = view.await.id;
                let group = world.cluster.node(holder).unwrap().group_by_id(id).unwrap();
                let before = group.standing().last;
                let applied = world.cluster.call(elsewhere, move |node| async move { node.apply(request).await });
                let crash = async {
                    // Before its answer is there.
                    while group.standing().applied <= before {
                        LifeRuntime::sleep(Duration::from_micros(10)).await;
                    }
                    world.cluster.crash(holder, Crash::Process);
                };
                let (told, ()) = futures_util::future::join(applied, crash).await;
                let error = told.unwrap().expect_err("it cannot know");
                assert_eq!(error.code, ErrorCode::OutcomeUnknown, "{error}");
                nemesis::start(&world, holder).await;
                let got = world.query_surely(&mut random, "single", br#""Get""#);
                let got = LifeRuntime::timeout(Duration::from_secs(30), got).await.unwrap().unwrap();
                assert_eq!(got.reply, Bytes::from_static(b"1"), "it was done");
            });
        }
    });
}
