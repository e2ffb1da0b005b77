//! `/zookeeper/config` and `/keeper/config`: who the members are, for clients that ask.

use std::fmt::Write;

use statehouse_sdk::adapter::Io;
use statehouse_sdk::adapter::Token;

use super::Shared;
use super::words::Facts;
use super::words::Member;
use crate::call::call_head;
use crate::call::own;
use crate::jute::Writer;

/// The members as ZooKeeper writes them, for `/zookeeper/config`, but for the version, which the tree adds. One port serves
/// what ZooKeeper has two for.
pub fn zookeeper(facts: &Facts) -> String {
    let mut text = String::new();
    for member in &facts.members {
        let (host, port) = member.address.rsplit_once(':').unwrap_or((&member.address, "0"));
        let role = if member.votes() { "participant" } else { "observer" };
        let _ = write!(text, "server.{}={host}:{port}:{port}:{role}", member.id);
        if let Some(client) = &member.client_address {
            let _ = write!(text, ";{client}");
        }
        text.push('\n');
    }
    text
}

/// The members as ClickHouse Keeper writes them, for `/keeper/config`.
pub fn clickhouse(facts: &Facts) -> String {
    let line = |member: &Member| {
        let role = if member.votes() { "participant" } else { "learner" };
        let priority = member.priority.unwrap_or(1);
        format!("server.{}={};{role};{priority}", member.id, member.address)
    };
    facts.members.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Proposes the members for the tree.
pub fn propose(shared: &mut Shared, io: &mut Io<'_>, token: Token, members: &str) {
    shared.frame.clear();
    call_head(own::SET_CONFIG, std::iter::empty(), &mut shared.frame);
    Writer::new(&mut shared.frame).buffer(Some(members.as_bytes()));
    io.propose(token, None, &shared.frame);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn members_are_written_as_clients_read_them() {
        let facts = Facts::parse(
            br#"{"members":[{"id":1,"address":"10.0.0.1:7001","role":"voter","client_address":"10.0.0.1:2181"},
                {"id":4,"address":"[::1]:7004","role":"learner","priority":50}]}"#,
        )
        .unwrap();
        let expected = "server.1=10.0.0.1:7001:7001:participant;10.0.0.1:2181\nserver.4=[::1]:7004:7004:observer\n";
        assert_eq!(zookeeper(&facts), expected);
        assert_eq!(clickhouse(&facts), "server.1=10.0.0.1:7001;participant;1\nserver.4=[::1]:7004;learner;50");
    }
}
