#![allow(clippy::unwrap_used)]
use super::*;

const PEER: NodeId = 2;
const CLUSTER: [u8; 16] = [7; 16];
const LIMIT: usize = 8 << 20;
const STALLED: Duration = Duration::from_millis(2000);

fn transport(address: std::net::SocketAddr) -> TcpTransport {
    let addresses = BTreeMap::from([(PEER, address.to_string())]);
    TcpTransport::limited(1, CLUSTER, 5, addresses, Limits { held_bytes: LIMIT, stalled: STALLED })
}

fn held(transport: &TcpTransport) -> usize {
    transport.link(PEER, Lane::Consensus).held.load(Ordering::Relaxed)
}

fn call(transport: &TcpTransport, request: impl Into<Bytes>) -> JoinHandle<Result<Bytes, CallError>> {
    spawn(transport.call(PEER, Lane::Consensus, request.into()))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        pause(Duration::from_millis(5)).await;
    }
}

/// Takes a connection, as a peer that is all right.
async fn shake_hands(listener: &TcpListener) -> TcpStream {
    let mut stream = listener.accept().await.unwrap().0;
    stream.read_exact(&mut [0; Hello::BYTES]).await.unwrap();
    stream.write_all(&[0, 0, 0]).await.unwrap();
    stream
}

/// Answers with the length of what it was asked.
struct Echo;

impl Handler for Echo {
    fn handle(&self, _: NodeId, _: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(std::future::ready(Ok(request.len().to_string().into())))
    }
}

/// A peer was stopped with a signal, or hung, and its kernel accepted on: every retry of the entries that it lacked stayed in the
/// queue to it, a gigabyte within a minute, and the connection was never given up.
#[tokio::test]
async fn a_peer_that_takes_nothing_costs_no_more_than_the_limit_and_is_dialled_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let transport = transport(address);
    // All of it goes, and is never answered.
    let first = call(&transport, "taken");
    let hung = shake_hands(&listener).await;
    until("the first call is written", || held(&transport) == 0).await;
    let request = Bytes::from(vec![0; 1 << 20]);
    let mut calls = Vec::new();
    let mut refused = 0;
    // More than the limit and all that the kernels of both take.
    for _ in 0..256 {
        calls.push(call(&transport, request.clone()));
        tokio::task::yield_now().await;
        assert!(held(&transport) < LIMIT + request.len() + CALL_BYTES, "{} bytes are held", held(&transport));
    }
    for call in &mut calls {
        if let Some(answer) = call.now_or_never() {
            let error = answer.unwrap().unwrap_err();
            assert!(matches!(&error, CallError::NotSent { .. }), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 100, "{refused} calls are answered at once");
    // What is true of them: the peer may have seen the first, and cannot have seen the last.
    let error = first.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Lost { .. }) && error.to_string().contains("took nothing"), "{error}");
    until("the others have ended", || calls.iter().all(JoinHandle::is_finished)).await;
    assert_eq!(held(&transport), 0);
    drop((listener, hung));
    let listener = TcpListener::bind(address).await.unwrap();
    let serving = spawn(serve(Arc::new(listener), PEER, Some(CLUSTER), Arc::new(Echo)));
    let mut answer = Err(String::new());
    for _ in 0..100 {
        answer = call(&transport, request.clone()).await.unwrap().map_err(|error| error.to_string());
        if answer.is_ok() {
            break;
        }
        pause(COOL_DOWN).await;
    }
    assert_eq!(answer, Ok(Bytes::from(request.len().to_string())));
    serving.abort();
}

/// A peer that was stopped goes on: what was retried meanwhile, and given up, would only keep it from what is wanted now.
#[test]
fn what_nobody_waits_for_is_not_written() {
    let mut calls = Calls::default();
    let outgoing = |request: &'static str| {
        let (reply, answer) = oneshot::channel();
        (Outgoing { request: request.into(), reply, place: None }, answer)
    };
    let ((given_up, answer), (wanted, _answer)) = (outgoing("given up"), outgoing("wanted"));
    drop(answer);
    calls.put(given_up);
    assert!(calls.out.is_empty() && calls.pending.is_empty());
    calls.put(wanted);
    assert_eq!((calls.out.len(), calls.pending.len()), (17 + 6, 1));
}

#[tokio::test]
async fn who_takes_a_little_is_waited_for_and_a_frame_that_was_not_written_whole_was_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport(listener.local_addr().unwrap());
    let large = call(&transport, vec![1; 64 << 20]);
    let mut slow = shake_hands(&listener).await;
    pause(STALLED / 8).await;
    // The link holds more than its limit already.
    let error = call(&transport, "more").await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::NotSent { .. }), "{error}");
    // A little now and then is enough not to be given up.
    let mut taken = vec![0; 2 << 20];
    for _ in 0..4 {
        slow.read_exact(&mut taken).await.unwrap();
        pause(STALLED / 2).await;
    }
    assert!(!large.is_finished());
    let mut left = (64 << 20) + 17 - 4 * taken.len();
    taken.truncate(256 << 10);
    while left > taken.len() {
        slow.read_exact(&mut taken).await.unwrap();
        left -= taken.len();
    }
    until("the large one is written", || held(&transport) == 0).await;
    drop(slow);
    let error = large.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Lost { .. }), "{error}");
    // The next peer stops in the middle of a frame.
    let cut = call(&transport, vec![1; 64 << 20]);
    let mut slow = shake_hands(&listener).await;
    slow.read_exact(&mut taken).await.unwrap();
    drop(slow);
    let error = cut.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::NotSent { .. }), "{error}");
}

/// Nodes that were cut off from each other for long found each other again only when the kernel next sent what it had not got through,
/// minutes later.
#[tokio::test]
async fn a_machine_that_is_gone_is_given_up_by_the_kernel_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    prepare(&stream, STALLED).unwrap();
    let socket = SockRef::from(&stream);
    assert_eq!((socket.tcp_user_timeout().unwrap(), socket.keepalive().unwrap()), (Some(STALLED), true));
}

/// A stranger that was configured as a peer was dialled twenty times a second on each lane, for ever.
#[tokio::test]
async fn who_says_no_is_dialled_ever_more_rarely_and_who_restarts_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let transport = transport(listener.local_addr().unwrap());
    let asking = transport.clone();
    let caller = spawn(async move {
        loop {
            if asking.call(PEER, Lane::Consensus, "hello".into()).await.is_err() {
                pause(Duration::from_millis(1)).await;
            }
        }
    });
    let refuse = async || {
        let mut stream = listener.accept().await.unwrap().0;
        let came = Instant::now();
        stream.read_exact(&mut [0; Hello::BYTES]).await.unwrap();
        stream.write_all(&[1, 2, 0, b'n', b'o']).await.unwrap();
        came
    };
    let mut came = Vec::new();
    for _ in 0..7 {
        came.push(refuse().await);
    }
    // 50, 100, 200, 400, 800, 1000 ms, at the least.
    let between = *came.last().unwrap() - *came.first().unwrap();
    assert!(between >= Duration::from_millis(2500), "seven tries within {between:?}");
    // It is the right one by now; its connections break as often as they like.
    drop(shake_hands(&listener).await);
    let since = Instant::now();
    for _ in 0..20 {
        drop(shake_hands(&listener).await);
    }
    assert!(since.elapsed() < REFUSED_COOL_DOWN_MAX * 10, "twenty connections within {:?}", since.elapsed());
    caller.abort();
}
