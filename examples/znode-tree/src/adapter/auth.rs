//! Who a client is: the identities of a connection, and what an auth packet adds to them.

use std::net::SocketAddr;

use sha1::Digest;
use sha1::Sha1;

use super::settings::Settings;
use crate::call::Identity;

/// What the identities of one connection may add up to, bytes: they go along with each of its requests. `statehouse
/// keeper` lets a command be 64 KiB longer than a frame, and there is more than identities beside the request.
const IDENTITIES_BYTES_MAX: usize = 60 << 10;

/// The identities of a connection, in the order they were proved: first the address it comes from.
#[derive(Debug, Default)]
pub struct Identities {
    /// All that go along with a request.
    all: Vec<(&'static str, Box<str>)>,
    /// What the client has proved, and is told of, begins here: before it is what was given to it.
    own_from: usize,
}

impl Identities {
    /// Of a connection from `peer` (`127.0.0.1:50123`, `[::1]:50123`); of one that is `trusted` no permission is asked, whoever it is.
    pub fn new(peer: &str, trusted: bool) -> Self {
        let given = trusted.then(|| (SUPER, "".into()));
        let all: Vec<_> = given.into_iter().chain([("ip", address(peer).into())]).collect();
        Self { own_from: usize::from(trusted), all }
    }

    /// Takes in what an auth packet proves; false when it proves nothing.
    pub fn prove(&mut self, settings: &Settings, scheme: &str, proof: &[u8]) -> bool {
        // ClickHouse Keeper takes a name and a password with one colon between, and nothing else.
        let is_clickhouses = scheme == "digest" && proof.iter().filter(|byte| **byte == b':').count() == 1;
        if settings.is_clickhouse() && !is_clickhouses {
            return false;
        }
        match scheme {
            "digest" if settings.digest_auth => {
                let digest = digest(proof);
                let known: usize = self.all.iter().map(|(scheme, id)| written_bytes(scheme, id)).sum();
                if known + written_bytes(scheme, &digest) > IDENTITIES_BYTES_MAX {
                    return false;
                }
                if settings.super_digest.as_deref() == Some(&*digest) {
                    self.add(SUPER, "".into());
                }
                self.add("digest", digest.into());
                true
            }
            // Known since the connection was opened.
            "ip" => true,
            _ => false,
        }
    }

    fn add(&mut self, scheme: &'static str, id: Box<str>) {
        if !self.own().any(|(known, proved)| *known == scheme && *proved == id) {
            self.all.push((scheme, id));
        }
    }

    /// All of them, for a call.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Identity<'_>> {
        self.all.iter().map(|(scheme, id)| Identity { scheme, id })
    }

    fn own(&self) -> impl ExactSizeIterator<Item = &(&'static str, Box<str>)> {
        self.all.get(self.own_from..).unwrap_or_default().iter()
    }

    /// Scheme and user of each, as whoAmI tells them: never what a password was made into.
    pub fn users(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.own().map(|(scheme, id)| (*scheme, id.split(':').next().filter(|_| *scheme != "ip").unwrap_or(id)))
    }
}

/// Whose requests need no permission.
const SUPER: &str = "super";

/// What an identity takes in a call, bytes.
fn written_bytes(scheme: &str, id: &str) -> usize {
    6 + scheme.len() + id.len()
}

/// A peer's address without its port, written as Java does: IPv6 in eight groups, an IPv4 address
/// inside IPv6 as the IPv4 address it is.
fn address(peer: &str) -> String {
    let Ok(peer) = peer.parse::<SocketAddr>() else { return peer.to_owned() };
    match peer.ip().to_canonical() {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => address.segments().map(|group| format!("{group:x}")).join(":"),
    }
}

/// `user:base64(sha1(user:password))`.
fn digest(user_and_password: &[u8]) -> String {
    let text = String::from_utf8_lossy(user_and_password);
    let user = text.split(':').next().unwrap_or_default();
    format!("{user}:{}", base64(&Sha1::digest(text.as_bytes())))
}

/// Base 64 with `+`, `/` and padding (RFC 4648): twelve lines against one more dependency.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * place)) as usize & 63).copied().unwrap_or(b'=');
            text.push(char::from(if place <= chunk.len() { digit } else { b'=' }));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::call::call_head;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn what_is_given_to_all_clients_is_nobodys_own() {
        let mut identities = Identities::new("10.0.0.1:4711", true);
        assert!(identities.prove(&Settings::parse(b"{}").unwrap(), "digest", b"user1:12345"));
        let users: Vec<_> = identities.users().collect();
        assert_eq!(users, [("ip", "10.0.0.1"), ("digest", "user1")]);
        let all: Vec<_> = identities.iter().collect();
        assert!(crate::acl::is_super(&all) && all.len() == 3, "{all:?}");
        let stranger = Identities::new("10.0.0.1:4711", false);
        assert!(!crate::acl::is_super(&stranger.iter().collect::<Vec<_>>()));
    }

    /// From ZooKeeper's own command line manual.
    #[test]
    fn a_digest_is_the_one_zookeeper_documents() {
        assert_eq!(digest(b"user1:12345"), "user1:+owfoSBn/am19roBPzR1/MfCblE=");
    }

    #[test]
    fn proofs_add_up_and_the_super_user_is_known_by_its_digest() {
        let settings = Settings::parse(br#"{"params":{"super_digest":"user1:+owfoSBn/am19roBPzR1/MfCblE="}}"#).unwrap();
        let mut identities = Identities::new("10.0.0.1:4711", false);
        assert!(identities.prove(&settings, "digest", b"other:secret"));
        assert!(identities.prove(&settings, "digest", b"other:secret"));
        assert!(identities.prove(&settings, "ip", b""));
        assert!(identities.prove(&settings, "digest", b"user1:12345"));
        for scheme in ["world", "super", "x509", "sasl", "", "Digest"] {
            assert!(!identities.prove(&settings, scheme, b"user1:12345"), "{scheme}");
        }
        let users: Vec<_> = identities.users().collect();
        assert_eq!(users, [("ip", "10.0.0.1"), ("digest", "other"), ("super", ""), ("digest", "user1")]);
    }

    #[test]
    fn names_without_end_are_not_taken_in() {
        let mut identities = Identities::new("10.0.0.1:4711", false);
        let settings = Settings::parse(b"{}").unwrap();
        assert!(!identities.prove(&settings, "digest", &vec![b'x'; 1 << 20]));
        let taken = (0..10_000).take_while(|at| identities.prove(&settings, "digest", format!("{at}:").as_bytes()));
        assert!((1_000..3_000).contains(&taken.count()));
        let mut head = Vec::new();
        call_head(0, identities.iter(), &mut head);
        assert!((50 << 10..64 << 10).contains(&head.len()), "what a command may be longer than a frame");
    }

    #[test]
    fn addresses_are_written_as_java_does() {
        for (peer, text) in [
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:1", "0:0:0:0:0:0:0:1"),
            ("[::ffff:10.1.2.3]:1", "10.1.2.3"),
            ("a simulated client", "a simulated client"),
        ] {
            assert_eq!(address(peer), text);
        }
    }
}
