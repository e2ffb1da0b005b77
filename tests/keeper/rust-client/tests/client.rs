//! The crate `zookeeper-client` against one keeper and against three: what its users do, as they would write it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::future::Future;
use std::time::Duration;

use keeper_rust_client::Keepers;
use zookeeper_client as zk;
use zookeeper_client::Acls;
use zookeeper_client::AddWatchMode;
use zookeeper_client::Client;
use zookeeper_client::CreateMode;
use zookeeper_client::CreateOptions;
use zookeeper_client::EventType;
use zookeeper_client::MultiReadResult;
use zookeeper_client::MultiWriteError;
use zookeeper_client::MultiWriteResult;

const OPEN: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// Longer than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(mode: CreateMode) -> CreateOptions<'static> {
    mode.with_acls(Acls::anyone_all())
}

async fn connect(keepers: &Keepers) -> Client {
    let connector = Client::connector().with_session_timeout(Duration::from_secs(10));
    connector.with_connection_timeout(PATIENCE).connect(&keepers.servers).await.unwrap()
}

async fn soon<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wanted).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Waits until a node is gone.
async fn until_gone(client: &Client, path: &str) {
    loop {
        let (stat, watcher) = client.check_and_watch_stat(path).await.unwrap();
        if stat.is_none() {
            return;
        }
        soon(path, watcher.changed()).await;
    }
}

/// All stories at once; each has its own nodes.
async fn play(keepers: &Keepers) {
    tokio::join!(
        nodes_of_all_kinds_come_and_go(keepers),
        watches_tell_once_or_always(keepers),
        many_writes_are_one(keepers),
        who_may_do_what(keepers),
        locks_are_held_by_one(keepers),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_node() {
    play(&Keepers::start(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_three_nodes() {
    play(&Keepers::start(3)).await;
}

async fn nodes_of_all_kinds_come_and_go(keepers: &Keepers) {
    let client = connect(keepers).await;
    let (stat, _) = client.create("/plain", b"first", &OPEN).await.unwrap();
    assert_eq!(client.get_data("/plain").await.unwrap(), (b"first".to_vec(), stat));
    assert_eq!(client.create("/plain", b"", &OPEN).await.unwrap_err(), zk::Error::NodeExists);
    assert_eq!(client.create("/no/way", b"", &OPEN).await.unwrap_err(), zk::Error::NoNode);
    let stat = client.set_data("/plain", b"second", Some(0)).await.unwrap();
    assert_eq!(client.set_data("/plain", b"", Some(0)).await.unwrap_err(), zk::Error::BadVersion);
    assert_eq!(client.check_stat("/plain").await.unwrap(), Some(stat));
    assert_eq!((stat.version, stat.data_length), (1, 6));

    let (_, first) = client.create("/plain/n-", b"", &open(CreateMode::PersistentSequential)).await.unwrap();
    let (_, second) = client.create("/plain/n-", b"", &open(CreateMode::EphemeralSequential)).await.unwrap();
    assert_eq!((first.into_i64(), second.into_i64()), (0, 1));
    let mut names = client.list_children("/plain").await.unwrap();
    names.sort_unstable();
    assert_eq!(names, ["n-0000000000", "n-0000000001"]);
    assert_eq!(client.count_descendants_number("/plain").await.unwrap(), 2);
    assert_eq!(client.delete("/plain", None).await.unwrap_err(), zk::Error::NotEmpty);

    // What belongs to a session goes with it, and is nobody's parent.
    let guest = connect(keepers).await;
    let (stat, _) = guest.create("/guest", b"", &open(CreateMode::Ephemeral)).await.unwrap();
    assert_eq!(stat.ephemeral_owner, guest.session_id().0);
    assert_eq!(guest.list_ephemerals("/").await.unwrap(), ["/guest"]);
    assert_eq!(guest.create("/guest/x", b"", &OPEN).await.unwrap_err(), zk::Error::NoChildrenForEphemerals);
    client.sync("/").await.unwrap();
    assert_eq!(client.check_stat("/guest").await.unwrap(), Some(stat));
    drop(guest);
    until_gone(&client, "/guest").await;

    // What goes by itself: a container with its last child, a node that is left alone for its time.
    client.create("/container", b"", &open(CreateMode::Container)).await.unwrap();
    client.create("/container/child", b"", &OPEN).await.unwrap();
    client.delete("/container/child", None).await.unwrap();
    until_gone(&client, "/container").await;
    client.create("/mayfly", b"", &OPEN.with_ttl(Duration::from_millis(100))).await.unwrap();
    until_gone(&client, "/mayfly").await;

    // A client that sees a part of the tree for all of it.
    let below = connect(keepers).await.chroot("/plain").unwrap();
    below.mkdir("/a/b/c", &OPEN).await.unwrap();
    client.sync("/").await.unwrap();
    assert!(client.check_stat("/plain/a/b/c").await.unwrap().is_some());
}

async fn watches_tell_once_or_always(keepers: &Keepers) {
    let (watching, writing) = (connect(keepers).await, connect(keepers).await);
    let (stat, created) = watching.check_and_watch_stat("/a").await.unwrap();
    assert_eq!(stat, None);
    writing.create("/a", b"", &OPEN).await.unwrap();
    let event = soon("the creation", created.changed()).await;
    assert_eq!((event.event_type, event.path.as_str()), (EventType::NodeCreated, "/a"));

    let (_, _, data) = watching.get_and_watch_data("/a").await.unwrap();
    let (_, _, children) = watching.get_and_watch_children("/a").await.unwrap();
    let mut all = watching.watch("/a", AddWatchMode::PersistentRecursive).await.unwrap();
    let mut one = watching.watch("/a", AddWatchMode::Persistent).await.unwrap();
    writing.create("/a/b", b"", &OPEN).await.unwrap();
    writing.set_data("/a", b"1", None).await.unwrap();
    writing.create("/a/b/c", b"", &OPEN).await.unwrap();
    writing.delete("/a/b/c", None).await.unwrap();
    let event = soon("the data", data.changed()).await;
    assert_eq!((event.event_type, event.path.as_str()), (EventType::NodeDataChanged, "/a"));
    let event = soon("the children", children.changed()).await;
    assert_eq!((event.event_type, event.path.as_str()), (EventType::NodeChildrenChanged, "/a"));
    for (kind, path) in [
        (EventType::NodeCreated, "/a/b"),
        (EventType::NodeDataChanged, "/a"),
        (EventType::NodeCreated, "/a/b/c"),
        (EventType::NodeDeleted, "/a/b/c"),
    ] {
        let event = soon(path, all.changed()).await;
        assert_eq!((event.event_type, event.path.as_str()), (kind, path));
    }
    for (kind, path) in [(EventType::NodeChildrenChanged, "/a"), (EventType::NodeDataChanged, "/a")] {
        let event = soon(path, one.changed()).await;
        assert_eq!((event.event_type, event.path.as_str()), (kind, path));
    }
    drop((all, one));
}

async fn many_writes_are_one(keepers: &Keepers) {
    let client = connect(keepers).await;
    let mut writer = client.new_multi_writer();
    writer.add_create("/m", b"0", &OPEN).unwrap();
    writer.add_set_data("/m", b"1", Some(0)).unwrap();
    writer.add_create("/m/n-", b"", &open(CreateMode::PersistentSequential)).unwrap();
    writer.add_check_version("/m", 1).unwrap();
    let results = writer.commit().await.unwrap();
    let [
        MultiWriteResult::Create { path, stat: made },
        MultiWriteResult::SetData { stat },
        MultiWriteResult::Create { path: child, .. },
        MultiWriteResult::Check,
    ] = &results[..]
    else {
        panic!("{results:?}");
    };
    assert_eq!((path.as_str(), child.as_str(), stat.version), ("/m", "/m/n-0000000000", 1));
    assert_eq!(made.czxid, stat.mzxid, "one transaction");

    let mut writer = client.new_multi_writer();
    writer.add_delete("/m/n-0000000000", None).unwrap();
    writer.add_check_version("/m", 7).unwrap();
    let refused = writer.commit().await.unwrap_err();
    assert_eq!(refused, MultiWriteError::OperationFailed { index: 1, source: zk::Error::BadVersion });
    assert_eq!(client.list_children("/m").await.unwrap(), ["n-0000000000"], "nothing of it was done");

    let mut checked = client.new_check_writer("/m", Some(1)).unwrap();
    checked.add_set_data("/m", b"2", None).unwrap();
    checked.commit().await.unwrap();

    let mut reader = client.new_multi_reader();
    reader.add_get_data("/m").unwrap();
    reader.add_get_children("/m").unwrap();
    reader.add_get_data("/none").unwrap();
    let results = reader.commit().await.unwrap();
    let [MultiReadResult::Data { data, stat }, MultiReadResult::Children { children }, MultiReadResult::Error { err }] =
        &results[..]
    else {
        panic!("{results:?}");
    };
    assert_eq!((data.as_slice(), stat.version, children.len(), err), (&b"2"[..], 2, 1, &zk::Error::NoNode));
}

async fn who_may_do_what(keepers: &Keepers) {
    let (anna, other) = (connect(keepers).await, connect(keepers).await);
    anna.auth("digest", b"anna:secret").await.unwrap();
    let users = anna.list_auth_users().await.unwrap();
    assert!(users.contains(&zk::AuthUser::new("digest", "anna")), "{users:?}");
    let hers = CreateMode::Persistent.with_acls(Acls::creator_all());
    anna.create("/hers", b"mine", &hers).await.unwrap();
    other.sync("/").await.unwrap();
    assert_eq!(other.get_data("/hers").await.unwrap_err(), zk::Error::NoAuth);
    assert_eq!(other.set_data("/hers", b"", None).await.unwrap_err(), zk::Error::NoAuth);
    other.auth("digest", b"anna:secret").await.unwrap();
    assert_eq!(other.get_data("/hers").await.unwrap().0, b"mine");
    let (acl, stat) = other.get_acl("/hers").await.unwrap();
    assert_eq!((acl.len(), acl[0].scheme(), stat.aversion), (1, "digest", 0));
    let read_only = [zk::Acl::new(zk::Permission::READ, zk::AuthId::anyone())];
    assert_eq!(other.set_acl("/hers", &read_only, Some(0)).await.unwrap().aversion, 1);
    anna.sync("/").await.unwrap();
    assert_eq!(anna.set_data("/hers", b"", None).await.unwrap_err(), zk::Error::NoAuth);
    let wrong = connect(keepers).await;
    assert_eq!(wrong.auth("sasl", b"nobody").await.unwrap_err(), zk::Error::AuthFailed);
}

async fn locks_are_held_by_one(keepers: &Keepers) {
    let watching = connect(keepers).await;
    watching.mkdir("/locks", &OPEN).await.unwrap();
    watching.create("/count", b"0", &OPEN).await.unwrap();
    let mut working = Vec::new();
    for _ in 0..4 {
        let client = connect(keepers).await;
        working.push(tokio::spawn(async move {
            for _ in 0..5 {
                let prefix = zk::LockPrefix::new_curator("/locks", "lock-").unwrap();
                let lock = client.lock(prefix, b"", Acls::anyone_all()).await.unwrap();
                // Read and write by one's own: only the lock keeps the others from it.
                client.sync("/count").await.unwrap();
                let (data, _) = client.get_data("/count").await.unwrap();
                let count: u32 = String::from_utf8(data).unwrap().parse().unwrap();
                lock.set_data("/count", (count + 1).to_string().as_bytes(), None).await.unwrap();
            }
        }));
    }
    for worker in working {
        soon("the workers", worker).await.unwrap();
    }
    watching.sync("/count").await.unwrap();
    assert_eq!(watching.get_data("/count").await.unwrap().0, b"20");

    // Who holds a lock and goes lets the next one in.
    let holder = connect(keepers).await;
    let held = holder.lock(zk::LockPrefix::new_shared("/locks/n-").unwrap(), b"", Acls::anyone_all()).await.unwrap();
    let next = connect(keepers).await;
    let waiting = tokio::spawn(async move {
        next.lock(zk::LockPrefix::new_shared("/locks/n-").unwrap(), b"", Acls::anyone_all()).await.map(drop)
    });
    std::mem::forget(held);
    drop(holder);
    soon("the next holder", waiting).await.unwrap().unwrap();
}
