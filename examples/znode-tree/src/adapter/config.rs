//! `/zookeeper/config`: who the members are, for clients that ask.

use std::fmt::Write;

use super::words::Facts;

/// The members as ZooKeeper writes them, ready for `/zookeeper/config`. One port serves what
/// ZooKeeper has two for.
pub fn text(facts: &Facts) -> String {
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
    let _ = write!(text, "version={:x}", facts.membership);
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn members_are_written_as_zookeepers_clients_read_them() {
        let facts = Facts::parse(
            br#"{"membership":18,"members":[{"id":1,"address":"10.0.0.1:7001","role":"voter","client_address":"10.0.0.1:2181"},
                {"id":4,"address":"[::1]:7004","role":"learner"}]}"#,
        )
        .unwrap();
        let expected =
            "server.1=10.0.0.1:7001:7001:participant;10.0.0.1:2181\nserver.4=[::1]:7004:7004:observer\nversion=12";
        assert_eq!(text(&facts), expected);
    }
}
