"""Makes ZooKeeper data directories as test fixtures: Debian's zookeeper 3.8 and kazoo.

usage: make.py DIR [none|gz|snappy]
"""
import hashlib, os, shutil, signal, subprocess, sys, time, json
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl, make_acl, OPEN_ACL_UNSAFE, ACL, Id
from kazoo.protocol.states import EventType

dir, mode = os.path.abspath(sys.argv[1]), (sys.argv[2:] or ["none"])[0]
shutil.rmtree(dir, ignore_errors=True); os.makedirs(dir)
cfg = f"{dir}/zoo.cfg"
open(cfg, "w").write(f"tickTime=1000\ndataDir={dir}\nclientPort=21810\nadmin.enableServer=false\n"
    "extendedTypesEnabled=true\npreAllocSize=1\n4lw.commands.whitelist=*\n"
    + (f"snapshot.compression.method={mode}\n" if mode != "none" else ""))
cp = ":".join("/usr/share/java/" + j + ".jar" for j in "zookeeper zookeeper-jute slf4j-api slf4j-simple log4j-1.2 netty-all netty-buffer netty-common netty-handler netty-transport netty-codec netty-resolver metrics-core snappy-java commons-cli commons-io".split())
def start():
    p = subprocess.Popen(["java", "-Xmx128m", "-cp", cp, "-Dzookeeper.extendedTypesEnabled=true", "-Dzookeeper.preAllocSize=1",
        "-Dzookeeper.snapshot.compression.method=" + ("" if mode == "none" else mode),
        "-Dzookeeper.admin.enableServer=false", "org.apache.zookeeper.server.quorum.QuorumPeerMain", cfg],
        stdout=open(f"{dir}/out.log", "a"), stderr=subprocess.STDOUT)
    z = KazooClient("127.0.0.1:21810", timeout=8)
    z.start(timeout=30)
    return p, z
def stop(p):
    p.send_signal(signal.SIGTERM); p.wait()
p, z = start()
z.create("/app", b"root of it")
for i in range(40): z.create(f"/app/item-", f"value {i}".encode(), sequence=True)
z.create("/app/empty", b""); 
z.set("/app/empty", b"no longer"); z.set("/app/empty", b"twice")
for i in range(0, 40, 4): z.delete(f"/app/item-{i:010}")
z.create("/secret", b"top", acl=[make_digest_acl("user", "pass", all=True), make_acl("world", "anyone", read=True)])
z.create("/ip", b"", acl=[ACL(31, Id("ip", "127.0.0.1"))])
z.create("/umlaut-\u00e4\u20ac", "\u00fc".encode())
stop(p)                      # a snapshot at the next start covers all this
p, z = start()
z.create("/containers", b"")
t = z.transaction(); t.create("/multi", b"m"); t.create("/multi/a", b"1"); t.set_data("/app", b"root, changed"); t.delete("/app/empty"); t.check("/multi", 0); print(t.commit())
t = z.transaction(); t.create("/never", b""); t.create("/multi", b"exists"); print(t.commit())
from kazoo.protocol.serialization import Create, int_struct, write_string, write_buffer, long_struct
from collections import namedtuple
import struct
class Raw(namedtuple("Raw", "type body")):
    def serialize(self): return self.body
    @classmethod
    def deserialize(cls, b, o): return b[o:]
def raw(type, body):
    r = Raw(type, body); a = z.handler.async_result(); z._call(r, a); return a.get()
acl = struct.pack(">ii", 1, 31) + write_string("world") + write_string("anyone")
raw(19, write_string("/containers/c") + write_buffer(b"in it") + acl + struct.pack(">i", 4))
z.create("/containers/c/child", b"x")
raw(21, write_string("/containers/ttl") + write_buffer(b"ttl") + acl + struct.pack(">iq", 5, 86400000 * 365))
z.create("/live", b"")
z.create("/live/eph", b"gone soon", ephemeral=True)
z2 = KazooClient("127.0.0.1:21810", timeout=8); z2.start(); z2.create("/live/other", b"", ephemeral=True); z2.stop()
z.set_acls("/multi/a", [make_acl("world", "anyone", read=True, write=True)])
z.create("/zookeeper/quota/app", b""); z.create("/zookeeper/quota/app/zookeeper_limits", b"count=1000,bytes=-1"); z.create("/zookeeper/quota/app/zookeeper_stats", b"count=33,bytes=333")
raw(1, write_string("/null") + struct.pack(">i", -1) + acl + struct.pack(">i", 0))
def walk(path):
    from kazoo.exceptions import NoAuthError
    out = {}
    data, stat = (z.get(path))
    try: acls, _ = z.get_acls(path)
    except NoAuthError: acls = None
    out[path] = dict(data=None if data is None else data.hex(), stat=list(stat), acls=acls and [[a.perms, a.id.scheme, a.id.id] for a in acls])
    for c in z.get_children(path): out.update(walk((path if path != "/" else "") + "/" + c))
    return out
tree = walk("/")
json.dump(tree, open(f"{dir}/tree.json", "w"), indent=1, sort_keys=True)
os.kill(p.pid, signal.SIGKILL); p.wait()
print(len(tree), os.listdir(dir + "/version-2"))
