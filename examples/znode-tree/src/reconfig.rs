//! reconfig: which members a client wants the cluster to have, in ZooKeeper's words, and what is to be done for it.
//!
//! A server is `server.N=HOST:PORT:PORT[:participant|:observer][;[HOST:]PORT]`, with more addresses behind `|`. Only number
//! and role count here: a node has said its own addresses when it joined the cluster.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::jute::Malformed;
use crate::jute::Reader;
use crate::wire::ErrorCode;

/// The version that stands for any.
const ANY_VERSION: i64 = -1;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconfigRequest<'a> {
    /// Servers that come, with commas between.
    pub joining: Option<&'a str>,
    /// Numbers of those that go, likewise.
    pub leaving: Option<&'a str>,
    /// All that there shall be; then the other two are not looked at.
    pub members: Option<&'a str>,
    /// The version that the configuration must have; -1 for any.
    pub version: i64,
}

/// Servers by number: whether each votes.
pub type Servers = BTreeMap<u64, bool>;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// These go, then those come.
    Step {
        /// Those that come.
        joining: Servers,
        /// Those that go.
        leaving: BTreeSet<u64>,
    },
    /// There are these and no others.
    Whole(Servers),
}

/// What is to be done, additions first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Who comes, votes from now on, or does not any more.
    pub add: Servers,
    /// Who goes.
    pub remove: Vec<u64>,
}

impl<'a> ReconfigRequest<'a> {
    /// Reads one.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (joining, leaving, members) = (reader.text()?, reader.text()?, reader.text()?);
        Ok(Self { joining, leaving, members, version: reader.i64()? })
    }

    /// Whether it may follow a configuration of this version.
    pub fn check_version(&self, is: i64) -> Result<(), ErrorCode> {
        if self.version == ANY_VERSION || self.version == is { Ok(()) } else { Err(ErrorCode::BadVersion) }
    }

    /// What it asks for; `BadArguments` when that cannot be read.
    pub fn wish(&self) -> Result<Wish, ErrorCode> {
        let wish = match self.members {
            Some(members) => all_servers(members).map(Wish::Whole),
            None => self.step(),
        };
        wish.ok_or(ErrorCode::BadArguments)
    }

    fn step(&self) -> Option<Wish> {
        let joining = items(self.joining).map(server).collect::<Option<_>>()?;
        let leaving = items(self.leaving).map(|number| number.parse::<u64>().ok()).collect::<Option<_>>()?;
        Some(Wish::Step { joining, leaving })
    }
}

impl Wish {
    /// What makes those of `now` the wanted ones. `BadArguments` when nobody would vote.
    pub fn plan(self, now: &Servers) -> Result<Plan, ErrorCode> {
        let wanted = match self {
            Self::Whole(servers) => servers,
            Self::Step { joining, leaving } => {
                let staying = now.iter().filter(|(server, _)| !leaving.contains(*server));
                staying.map(|(server, votes)| (*server, *votes)).chain(joining).collect::<Servers>()
            }
        };
        if !wanted.values().any(|votes| *votes) {
            return Err(ErrorCode::BadArguments);
        }
        let remove = now.keys().filter(|server| !wanted.contains_key(*server)).copied().collect();
        let add = wanted.into_iter().filter(|(server, votes)| now.get(server) != Some(votes)).collect();
        Ok(Plan { add, remove })
    }
}

/// What stands between commas; of nothing, nothing.
fn items(list: Option<&str>) -> impl Iterator<Item = &str> {
    list.unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// The servers of a whole configuration: a line each, or with commas between. Its version is another one afterwards.
fn all_servers(members: &str) -> Option<Servers> {
    let lines = members.split([',', '\n']).map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with("version=")).map(server).collect()
}

fn server(text: &str) -> Option<(u64, bool)> {
    let (name, addresses) = text.split_once('=')?;
    let number = name.trim().strip_prefix("server.")?.parse::<u64>().ok().filter(|number| *number > 0)?;
    let addresses = match addresses.split_once(';') {
        None => addresses,
        Some((addresses, client)) => {
            let port = match host(client.trim()) {
                Some((_, port)) => port,
                None => client.trim(),
            };
            is_port(port).then_some(addresses)?
        }
    };
    let mut roles = addresses.split('|').map(|address| role(address.trim()));
    let votes = roles.next()??;
    roles.all(|other| other == Some(votes)).then_some((number, votes))
}

/// Whether a server of `HOST:PORT:PORT[:ROLE]` votes.
fn role(address: &str) -> Option<bool> {
    let mut parts = host(address)?.1.split(':');
    let are_ports = is_port(parts.next()?) && is_port(parts.next()?);
    let votes = match parts.next() {
        None => true,
        Some(role) if role.trim().eq_ignore_ascii_case("participant") => true,
        Some(role) if role.trim().eq_ignore_ascii_case("observer") => false,
        Some(_) => return None,
    };
    (are_ports && parts.next().is_none()).then_some(votes)
}

/// The host of an address, without its brackets, and what follows.
fn host(address: &str) -> Option<(&str, &str)> {
    let (host, rest) = match address.strip_prefix('[') {
        Some(bare) => bare.split_once("]:")?,
        None => address.split_once(':')?,
    };
    (!host.is_empty()).then_some((host, rest))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn request<'a>(joining: &'a str, leaving: &'a str) -> ReconfigRequest<'a> {
        ReconfigRequest { joining: Some(joining), leaving: Some(leaving), members: None, version: -1 }
    }

    type Steps = (Vec<(u64, bool)>, Vec<u64>);

    fn plan(joining: &str, leaving: &str) -> Result<Steps, ErrorCode> {
        let now = Servers::from([(1, true), (2, true), (3, true), (7, false)]);
        let Plan { add, remove } = request(joining, leaving).wish()?.plan(&now)?;
        Ok((add.into_iter().collect(), remove))
    }

    #[test]
    fn a_server_is_written_in_every_way_that_zookeeper_reads() {
        for (text, server) in [
            ("server.4=h:1:2", (4, true)),
            ("server.4=h:1:2;3", (4, true)),
            ("server.4=h:1:2:participant;3", (4, true)),
            (" server.5 = 10.0.0.1:2888:3888:OBSERVER;0.0.0.0:2181 ", (5, false)),
            ("server.6=[::1]:1:2:observer;[2001:db8::1]:3", (6, false)),
            ("server.6=a:1:2|b:1:2", (6, true)),
            ("server.6=a:1:2:observer|[::1]:1:2:observer;3", (6, false)),
        ] {
            assert_eq!(super::server(text.trim()), Some(server), "{text}");
        }
        for text in [
            "",
            "some thing",
            "server.4",
            "server.4=",
            "server.4=h",
            "server.4=h:1",
            "server.4=:1:2",
            "server.4=h:1:x",
            "server.4=h:1:70000",
            "server.4=h:1:2:learner",
            "server.4=h:1:2:observer:1",
            "server.4=h:1:2;",
            "server.4=h:1:2;x",
            "server.4=h:1:2;:3",
            "server.4=h:1:2;3;4",
            "server.4=[::1:1:2",
            "server.4=a:1:2|b:1:2:observer",
            "server.x=h:1:2",
            "server.0=h:1:2",
            "server.-4=h:1:2",
            "group.1=1:2",
            "weight.1=1",
        ] {
            assert_eq!(super::server(text), None, "{text}");
        }
    }

    #[test]
    fn who_comes_and_who_goes_follows_from_who_is_there() {
        let new = "server.4=h:1:2;3";
        assert_eq!(plan(new, ""), Ok((vec![(4, true)], vec![])));
        assert_eq!(plan("server.4=h:1:2:observer;3, server.5=h:1:2;3", "2, 3"), {
            Ok((vec![(4, false), (5, true)], vec![2, 3]))
        });
        assert_eq!(plan("server.7=h:1:2;3", ""), Ok((vec![(7, true)], vec![])), "an observer becomes a participant");
        assert_eq!(plan("server.2=h:1:2;3", "2"), Ok((vec![], vec![])), "it goes and comes");
        assert_eq!(plan("", "9"), Ok((vec![], vec![])), "nobody knows it");
        assert_eq!(plan("", ""), Ok((vec![], vec![])));
        assert_eq!(
            plan("server.2=h:1:2:observer;3", ""),
            Ok((vec![(2, false)], vec![])),
            "a participant becomes an observer"
        );
        assert_eq!(plan("server.2=h:1:2:observer;3", "1,3"), Err(ErrorCode::BadArguments), "nobody would vote");
        assert_eq!(plan("", "1,2,3"), Err(ErrorCode::BadArguments), "nobody would vote");
        assert_eq!(plan("", "two"), Err(ErrorCode::BadArguments));
    }

    #[test]
    fn a_whole_configuration_replaces_what_there_is() {
        let members = "server.1=h:1:2:participant;3\nserver.4=h:1:2;3,\n\nversion=1a";
        let all = ReconfigRequest { members: Some(members), ..request("nonsense", "nonsense") };
        let roles = ReconfigRequest { members: Some("server.1=h:1:2:observer;3,server.2=h:1:2;3"), ..all };
        let swapped = roles.wish().unwrap().plan(&Servers::from([(1, true), (2, false)])).unwrap();
        assert_eq!(swapped, Plan { add: Servers::from([(1, false), (2, true)]), remove: vec![] });
        let now = Servers::from([(1, true), (2, true), (3, false)]);
        let Plan { add, remove } = all.wish().unwrap().plan(&now).unwrap();
        assert_eq!((add, remove), (Servers::from([(4, true)]), vec![2, 3]));
        for members in ["", "version=1", "server.1=h:1:2:observer", "group.1=1:2"] {
            let refused = ReconfigRequest { members: Some(members), ..all };
            assert!(refused.wish().and_then(|wish| wish.plan(&now)).is_err(), "{members}");
        }
    }
}
