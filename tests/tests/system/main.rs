//! Whole-system tests: real nodes in processes of their own, real disks and sockets, `kill -9`. Each test is
//! a story; nothing in them waits for a fixed time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::disallowed_methods)]

mod against_zookeeper;
mod backup;
mod bad_input;
mod command_line;
mod crashes;
mod disaster;
mod disk_space;
mod documents;
mod events;
mod first_steps;
mod following;
mod formats;
mod gateway;
mod keeper;
mod keeper_bench;
mod keeper_memory;
mod keeper_rcfg;
mod keeper_reconfig;
mod keeper_recovery;
mod keeper_sessions;
mod keeper_words;
mod membership;
mod partitions;
mod redis;
mod sessions;
mod silence;
mod status;
mod transfers;
mod traps;
mod upgrades;
