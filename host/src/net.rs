//! Client connections, as a gateway sees them: a small trait, so that the same gateway runs on TCP and in the
//! simulator. Between nodes there is [`crate::peer::Transport`] instead.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// Where clients come from.
pub trait Net: Clone + Send + Sync + 'static {
    /// A bound address.
    type Listener: Listener;

    /// Binds `HOST:PORT`.
    fn listen(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;
}

/// A bound address.
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Connection: Connection;

    /// Where it listens: with the port the system chose, if it was asked to.
    fn address(&self) -> String;

    /// The next connection, and where it is from: `HOST:PORT`.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Connection, String)>> + Send;
}

/// One client. Dropping it closes it.
pub trait Connection: Send + Sync + 'static {
    /// Ready when [`Self::read`] may give something. May be ready for nothing.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// What has arrived, as much as is handed over at once; empty at the end. `WouldBlock` when there is nothing.
    fn read(&self) -> io::Result<Bytes>;

    /// Ready when [`Self::write`] may take something.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Writes a part of `parts` without waiting: how many bytes. `WouldBlock` when it takes none now.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says to the client that nothing more comes; it may still send.
    fn finish(&self);
}

/// Listens at `HOST:PORT`; where `[::]` stands for all addresses and this machine has no IPv6, at all that it has.
pub async fn listen_at(address: &str) -> io::Result<TcpListener> {
    bind_by(address, TcpListener::bind).await
}

async fn bind_by<L, F>(address: &str, bind: impl Fn(String) -> F) -> io::Result<L>
where
    F: Future<Output = io::Result<L>>,
{
    let failed = match bind(address.to_owned()).await {
        Err(error) if lacks_ipv6(&error) => error,
        bound => return bound,
    };
    let all = address.parse::<SocketAddr>().ok().filter(|address| address.is_ipv6() && address.ip().is_unspecified());
    // One address of many would be another place.
    let Some(all) = all else { return Err(failed) };
    let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, all.port()));
    let bound = bind(instead.to_string()).await?;
    tracing::warn!("this machine has no IPv6 ({failed}): listening at {instead} instead of {address}");
    Ok(bound)
}

/// Said by a system without IPv6, or with one that is switched off.
fn lacks_ipv6(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

/// TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Net for Tcp {
    type Listener = TcpListener;

    async fn listen(&self, address: &str) -> io::Result<TcpListener> {
        listen_at(address).await
    }
}

impl Listener for TcpListener {
    type Connection = TcpStream;

    fn address(&self) -> String {
        self.local_addr().map_or_else(|_| String::new(), |address| address.to_string())
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, String)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Replies are written whole; waiting to fill a packet would only delay them.
        stream.set_nodelay(true)?;
        Ok((stream, peer.to_string()))
    }
}

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// One a thread and not one a connection: an idle connection has no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

impl Connection for TcpStream {
    async fn readable(&self) -> io::Result<()> {
        TcpStream::readable(self).await
    }

    fn read(&self) -> io::Result<Bytes> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = None;
            let tried = self.try_io(Interest::READABLE, || {
                let count = self.try_read(buffer)?;
                read = Some(count);
                // There was no more. Said so, the runtime waits for the next bytes at once; else it would ask the system,
                // once for each request of each client.
                let drained = 0 < count && count < buffer.len();
                if drained { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (read, tried) {
                (Some(count), _) => Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or(&[]))),
                (None, Err(error)) => Err(error),
                (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
            }
        })
    }

    async fn writable(&self) -> io::Result<()> {
        TcpStream::writable(self).await
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(parts)
    }

    fn finish(&self) {
        if let Ok(descriptor) = self.as_fd().try_clone_to_owned() {
            // A client that is gone already needs no word.
            let _gone = std::net::TcpStream::from(descriptor).shutdown(Shutdown::Write);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use std::cell::RefCell;

    use rustix::io::Errno;

    use super::*;

    /// Tries to bind `address` where the system answers IPv6 addresses with `errno`: what was bound, or the error, and all tries.
    async fn bound(address: &str, errno: Errno) -> (Result<String, Option<i32>>, Vec<String>) {
        let tried = RefCell::new(Vec::new());
        let bind = |address: String| {
            tried.borrow_mut().push(address.clone());
            std::future::ready(if address.starts_with('[') { Err(io::Error::from(errno)) } else { Ok(address) })
        };
        let bound = bind_by(address, bind).await.map_err(|error| error.raw_os_error());
        (bound, tried.into_inner())
    }

    /// A file that is the same on all machines, `--client [::]:2181`, was an error on those without IPv6.
    #[tokio::test]
    async fn a_machine_without_ipv6_listens_at_all_addresses_that_it_has() {
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let (at, tried) = bound("[::]:2181", errno).await;
            assert_eq!((at.as_deref(), tried), (Ok("0.0.0.0:2181"), vec!["[::]:2181".into(), "0.0.0.0:2181".into()]));
        }
    }

    #[tokio::test]
    async fn an_address_that_is_one_of_many_and_an_error_of_another_kind_stay_what_they_are() {
        for (address, errno) in [("[::1]:2181", Errno::AFNOSUPPORT), ("[::]:2181", Errno::ADDRINUSE)] {
            let (at, tried) = bound(address, errno).await;
            assert_eq!((at, tried), (Err(Some(errno.raw_os_error())), vec![address.to_owned()]));
        }
        assert_eq!(bound("0.0.0.0:1", Errno::AFNOSUPPORT).await.0.as_deref(), Ok("0.0.0.0:1"));
    }
}
