//! The raw image of a machine as bytes: version, registers, and the pages that are not all zero. Little-endian.
//!
//! Why it lies beside the portable snapshot: a machine made by the guest's own `restore` has the same
//! contents but another heap, so its allocator would take other fuel and grow at other entries than that of a
//! replica that never stopped, and near a limit one would trap where the other does not.

use std::io;
use std::io::Read;
use std::io::Write;

use wasmtime::Val;

use super::Fault;
use super::RestoreError;
use super::SnapshotError;
use super::cost::RUNTIME_VERSION;
use super::instance::Registers;
use super::machine::value_bits;
use super::memory::Image;

const MAGIC: &[u8; 4] = b"IMG1";
const PAGE_BYTES: usize = 4096;
/// Behind the last page.
const END: u32 = u32::MAX;

/// Writes `registers` and `memory`, whose pages are read only where `image`, which lies behind it, has data.
pub(super) fn write(
    out: &mut (dyn Write + Send),
    memory: &[u8],
    image: &Image,
    registers: &Registers,
) -> Result<(), SnapshotError> {
    let unwritable = SnapshotError::Unwritable;
    let mut head = Vec::new();
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&RUNTIME_VERSION.to_le_bytes());
    head.extend_from_slice(&(registers.memory_bytes as u64).to_le_bytes());
    head.extend_from_slice(&(registers.globals.len() as u32).to_le_bytes());
    for value in &registers.globals {
        head.push(match value {
            Val::I32(_) => 0,
            Val::I64(_) => 1,
            Val::F32(_) => 2,
            Val::F64(_) => 3,
            _ => 4,
        });
        head.extend_from_slice(&value_bits(value).to_le_bytes());
    }
    out.write_all(&head).map_err(unwritable)?;
    let unreadable = |error| SnapshotError::Fault(Fault::because("cannot read a memory file", error));
    pages(memory, image, unreadable, |number, page| {
        out.write_all(&(number as u32).to_le_bytes()).map_err(unwritable)?;
        out.write_all(page).map_err(unwritable)
    })?;
    out.write_all(&END.to_le_bytes()).map_err(unwritable)
}

/// Calls `visit` with the number and the bytes of each page that is not all zero. Reads only where `image`, which lies
/// behind `memory`, has data; which pages it holds as holes is the host's affair.
pub(super) fn pages<E>(
    memory: &[u8],
    image: &Image,
    unreadable: impl Fn(io::Error) -> E,
    mut visit: impl FnMut(usize, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let mut at = 0;
    while let Some(data) = image.next_data(at, memory.len()).map_err(&unreadable)? {
        let first = data.start / PAGE_BYTES;
        let pages = memory.get(first * PAGE_BYTES..data.end).unwrap_or(&[]).chunks(PAGE_BYTES);
        for (number, page) in (first..).zip(pages).filter(|(_, page)| !ZEROS.starts_with(page)) {
            visit(number, page)?;
        }
        at = data.end;
    }
    Ok(())
}

fn bytes<const N: usize>(source: &mut (dyn Read + Send)) -> Result<[u8; N], RestoreError> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes).map_err(RestoreError::Unreadable)?;
    Ok(bytes)
}

fn damaged(what: &str) -> RestoreError {
    RestoreError::Unreadable(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

/// Reads an image into `image`; `None` when it is of another runtime version, and then the source stands
/// behind it all the same.
pub(super) fn read(
    source: &mut (dyn Read + Send),
    image: &Image,
    capacity_bytes: usize,
    saved_globals: usize,
) -> Result<Option<Registers>, RestoreError> {
    if &bytes::<4>(source)? != MAGIC {
        return Err(damaged("no memory image"));
    }
    let ours = bytes(source)? == RUNTIME_VERSION.to_le_bytes();
    let memory_bytes = usize::try_from(u64::from_le_bytes(bytes(source)?)).unwrap_or(usize::MAX);
    let count = u32::from_le_bytes(bytes(source)?) as usize;
    if ours && (memory_bytes > capacity_bytes || count != saved_globals) {
        return Err(damaged("the image does not fit the module and its limits"));
    }
    let mut globals = Vec::new();
    for _ in 0..count {
        let [kind] = bytes(source)?;
        let bits = u128::from_le_bytes(bytes(source)?);
        globals.push(match kind {
            0 => Val::I32((bits as u32).cast_signed()),
            1 => Val::I64((bits as u64).cast_signed()),
            2 => Val::F32(bits as u32),
            3 => Val::F64(bits as u64),
            4 => Val::V128(bits.into()),
            _ => return Err(damaged("no such kind of global")),
        });
    }
    loop {
        let number = u32::from_le_bytes(bytes(source)?);
        if number == END {
            break;
        }
        let page: [u8; PAGE_BYTES] = bytes(source)?;
        let offset = number as usize * PAGE_BYTES;
        if ours {
            if offset + PAGE_BYTES > memory_bytes {
                return Err(damaged("a page lies outside the memory"));
            }
            image.write_at(offset, &page).map_err(|error| Fault::because("cannot write to a memory file", error))?;
        }
    }
    Ok(ours.then_some(Registers { globals, memory_bytes }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::module::Context;
    use crate::module::Effects;
    use crate::module::Engine;
    use crate::module::Limits;
    use crate::module::Machine;
    use crate::module::Outcome;

    const GROWS: &str = r#"(module
        (func (export "statehouse_abi_1"))
        (memory (export "memory") 1)
        (global $calls (mut i64) (i64.const 0))
        (func (export "alloc") (param i32) (result i32) (i32.const 1024))
        (func (export "init") (param i32 i32) (result i64) (i64.const 0))
        ;; Grows by a page at every tenth call and marks the newest page's first byte with the count.
        (func (export "apply") (param i32 i32) (result i64)
            (global.set $calls (i64.add (global.get $calls) (i64.const 1)))
            (if (i64.eqz (i64.rem_u (global.get $calls) (i64.const 10)))
                (then (drop (memory.grow (i32.const 1)))))
            (i64.store
                (i32.mul (i32.sub (memory.size) (i32.const 1)) (i32.const 65536))
                (global.get $calls))
            (i64.const 0))
        (func (export "query") (param i32 i32) (result i64) (i64.const 0))
        (func (export "snapshot") (result i64) (i64.const 0))
        (func (export "restore") (result i64) (i64.const 0)))"#;

    fn apply(machine: &mut Machine, index: u64) -> (Outcome, u64) {
        let mut effects = Effects::default();
        let context = Context { index, ..Context::default() };
        (machine.apply(&context, b"x", &mut effects).unwrap(), effects.fuel_used)
    }

    /// The guest's own `restore` keeps nothing here, so whatever survives comes from the image: a replica that
    /// restarts from a snapshot must take the same fuel and grow at the same entries as one that went on.
    #[test]
    fn a_machine_from_an_image_goes_on_exactly_as_the_one_that_never_stopped() {
        let module = Engine::new().unwrap().load(&wat::parse_str(GROWS).unwrap(), None).unwrap();
        let limits = Limits { memory_bytes_max: 8 << 16, ..Limits::default() };
        let mut kept = Machine::init(&module, &limits, &Context::default(), b"{}", &mut Effects::default()).unwrap();
        for index in 1..=25 {
            apply(&mut kept, index);
        }
        let mut bytes = Vec::new();
        kept.freeze().unwrap().write(&mut bytes).unwrap();
        let mut restored = Machine::restore_image(&module, &limits, &mut &bytes[..]).unwrap();
        assert_eq!(kept.image_digest().unwrap(), restored.image_digest().unwrap());
        for index in 26..=100 {
            assert_eq!(apply(&mut kept, index), apply(&mut restored, index), "entry {index}");
        }
        assert_eq!(kept.image_digest().unwrap(), restored.image_digest().unwrap());
        assert_eq!(kept.memory_bytes(), 8 << 16);
    }

    #[test]
    fn a_cut_or_foreign_image_is_refused() {
        let module = Engine::new().unwrap().load(&wat::parse_str(GROWS).unwrap(), None).unwrap();
        let limits = Limits::default();
        let mut machine = Machine::init(&module, &limits, &Context::default(), b"{}", &mut Effects::default()).unwrap();
        apply(&mut machine, 1);
        let mut bytes = Vec::new();
        machine.freeze().unwrap().write(&mut bytes).unwrap();
        for cut in [0, 3, 10, bytes.len() / 2, bytes.len() - 1] {
            assert!(Machine::restore_image(&module, &limits, &mut bytes.get(..cut).unwrap()).is_err(), "cut at {cut}");
        }
        bytes.splice(8..16, u64::MAX.to_le_bytes());
        assert!(Machine::restore_image(&module, &limits, &mut &bytes[..]).is_err(), "a memory of 2^64 bytes");
    }
}
