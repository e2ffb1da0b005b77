//! Who changed what: a line of the node's log for each change that a client asked for, as ZooKeeper's audit log has it.
//!
//! The host takes a limited number of lines of one call, but long ones. So the lines of a call are handed over together.

use std::fmt::Write as _;

use super::auth::Identities;
use crate::jute::Malformed;
use crate::jute::Reader;
use crate::ops::Write;
use crate::wire::CreateMode;
use crate::wire::MultiHeader;
use crate::wire::op;

/// Bytes that go to the log as one, so that the host does not cut them off.
const TEXT_BYTES: usize = 4_000;

/// A reconfiguration.
pub const RECONFIG: &str = "operation=reconfig";

/// Who asked.
pub struct Who<'a> {
    /// The session; 0 for none.
    pub session: u64,
    /// Of the connection.
    pub identities: &'a Identities,
}

/// What a request would change, each as the part of a line that says so. Of one that cannot be read: nothing.
pub fn deeds(operation: i32, body: &[u8]) -> Vec<String> {
    let mut deeds = Vec::new();
    let mut reader = Reader::new(body);
    // As far as it can be read: the tree refuses the rest.
    let _ = match operation {
        op::MULTI => deeds_of_multi(&mut reader, &mut deeds),
        operation => read_deed(operation, &mut reader, &mut deeds),
    };
    deeds
}

fn deeds_of_multi(reader: &mut Reader<'_>, deeds: &mut Vec<String>) -> Result<(), Malformed> {
    loop {
        let header = MultiHeader::read(reader)?;
        if header.done {
            return Ok(());
        }
        read_deed(header.op, reader, deeds)?;
    }
}

fn read_deed(operation: i32, reader: &mut Reader<'_>, deeds: &mut Vec<String>) -> Result<(), Malformed> {
    // A path may hold anything, ends of lines as well.
    let deed = |name: &str, path: &str| format!("operation={name}\tznode={}", path.escape_debug());
    deeds.push(match Write::read(operation, reader)?.ok_or(Malformed)? {
        Write::Create(_, request) => {
            let kind = match CreateMode::from_flags(request.flags) {
                Some(CreateMode::Ephemeral) => "ephemeral",
                Some(CreateMode::PersistentSequential) => "persistent_sequential",
                Some(CreateMode::EphemeralSequential) => "ephemeral_sequential",
                Some(CreateMode::Container) => "container",
                Some(CreateMode::PersistentWithTtl) => "persistent_with_ttl",
                Some(CreateMode::PersistentSequentialWithTtl) => "persistent_sequential_with_ttl",
                Some(CreateMode::Persistent) | None => "persistent",
            };
            format!("{}\tznode_type={kind}", deed("create", request.path))
        }
        Write::Delete(request) | Write::TryRemove(request) => deed("delete", request.path),
        Write::DeleteContainer(path) => deed("delete", path),
        Write::RemoveRecursive(path, _) => deed("deleteRecursive", path),
        Write::SetData(request) => deed("setData", request.path),
        Write::SetAcl(request) => deed("setAcl", request.path),
        Write::Check(_) | Write::CheckNotExists(_) | Write::CheckStat(..) | Write::SetConfig(_) => return Ok(()),
    });
    Ok(())
}

/// Appends a line for each deed, now that it is known how it ended. A multi that failed has no error but says so in
/// its first result.
pub fn write(out: &mut String, who: &Who<'_>, deeds: &[String], error: i32, body: &[u8]) {
    let first = MultiHeader::read(&mut Reader::new(body));
    let has_failed = error != 0 || first.is_ok_and(|first| !first.done && first.op == op::ERROR);
    let result = if has_failed { "failure" } else { "success" };
    let (mut users, mut ip) = (String::new(), "");
    for (scheme, user) in who.identities.users() {
        match scheme {
            "ip" => ip = user,
            "super" => users.push_str("super,"),
            _ => drop(write!(users, "{},", user.escape_debug())),
        }
    }
    let user = users.strip_suffix(',').unwrap_or(ip);
    for deed in deeds {
        let _ = writeln!(out, "session=0x{:x}\tuser={user}\tip={ip}\t{deed}\tresult={result}", who.session);
    }
}

/// Hands the lines to the log.
pub fn flush(lines: &mut String) {
    let mut rest = lines.as_str();
    while !rest.is_empty() {
        let front = rest.get(..rest.floor_char_boundary(TEXT_BYTES)).unwrap_or(rest);
        // Whole lines; of one that is too long the host keeps the front.
        let end = front.rfind('\n').or_else(|| rest.find('\n'));
        let (text, behind) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        statehouse_sdk::info!("audit: {}", text.trim_end());
        rest = behind;
    }
    lines.clear();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::adapter::settings::Settings;
    use crate::jute::Writer;

    fn body(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut Writer::new(&mut bytes));
        bytes
    }

    fn create(path: &str, flags: i32) -> Vec<u8> {
        body(|out| {
            out.text(path).text("").count(0).i32(flags);
        })
    }

    #[test]
    fn a_line_says_who_did_what_and_how_it_ended() {
        let settings = Settings::parse(b"{}").unwrap();
        let mut identities = Identities::new("10.0.0.1:4711", false);
        let mut lines = String::new();
        let anonymous = deeds(op::CREATE, &create("/a", 0));
        write(&mut lines, &Who { session: 255, identities: &identities }, &anonymous, 0, b"\0\0\0\x02/a");
        assert!(identities.prove(&settings, "digest", b"anna:secret"));
        let who = Who { session: 255, identities: &identities };
        write(&mut lines, &who, &deeds(op::DELETE, &body(|out| _ = out.text("/a\nforged").i32(-1))), -101, b"");
        assert_eq!(
            lines,
            "session=0xff\tuser=10.0.0.1\tip=10.0.0.1\toperation=create\tznode=/a\tznode_type=persistent\tresult=success\n\
             session=0xff\tuser=anna\tip=10.0.0.1\toperation=delete\tznode=/a\\nforged\tresult=failure\n"
        );
        flush(&mut lines);
        assert!(lines.is_empty());
    }

    #[test]
    fn a_multi_has_a_line_for_each_change_and_all_end_alike() {
        let multi = body(|out| {
            for (operation, part) in [(op::CHECK, body(|out| _ = out.text("/c").i32(1))), (op::CREATE, create("/e", 1))]
            {
                MultiHeader { op: operation, done: false, err: -1 }.write(out);
                out.raw(&part);
            }
            MultiHeader::END.write(out);
        });
        let deeds = deeds(op::MULTI, &multi);
        assert_eq!(deeds, ["operation=create\tznode=/e\tznode_type=ephemeral"]);
        let failed = body(|out| {
            for _ in 0..2 {
                MultiHeader { op: op::ERROR, done: false, err: -103 }.write(out);
                out.i32(-103);
            }
            MultiHeader::END.write(out);
        });
        let (mut lines, identities) = (String::new(), Identities::new("[::1]:1", false));
        write(&mut lines, &Who { session: 1, identities: &identities }, &deeds, 0, &failed);
        assert!(lines.ends_with("result=failure\n"), "{lines}");
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        for operation in -1..600 {
            assert!(deeds(operation, b"\0\0").is_empty(), "{operation}");
        }
    }
}
