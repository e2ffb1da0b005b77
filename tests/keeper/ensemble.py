"""Makes a ZooKeeper data directory of several epochs as a test fixture: three of Debian's zookeeper 3.8, whose leader is
killed again and again, and kazoo. What is in tests/keeper/ensemble is DIR/3/version-2 without its snapshots but the
first, and without most of the zeros at the end of its logs.

usage: ensemble.py DIR
"""
import os, random, shutil, socket, subprocess, sys, time
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError, NodeExistsError

dir, members, epochs = os.path.abspath(sys.argv[1]), (1, 2, 3), 4
shutil.rmtree(dir, ignore_errors=True)
servers = "".join(f"server.{i}=127.0.0.1:{28820 + i}:{28830 + i}\n" for i in members)
for i in members:
    os.makedirs(f"{dir}/{i}")
    open(f"{dir}/{i}/myid", "w").write(str(i))
    open(f"{dir}/{i}.cfg", "w").write(f"tickTime=1000\ninitLimit=40\nsyncLimit=20\ndataDir={dir}/{i}\nsnapCount=60\n"
        f"clientPort={28810 + i}\nadmin.enableServer=false\npreAllocSize=64\n4lw.commands.whitelist=*\n{servers}")
jars = ("zookeeper zookeeper-jute slf4j-api slf4j-simple log4j-1.2 netty-all netty-buffer netty-common netty-handler "
    "netty-transport netty-codec netty-resolver metrics-core snappy-java commons-cli commons-io").split()
cp, processes = ":".join(f"/usr/share/java/{jar}.jar" for jar in jars), {}

def start(i):
    processes[i] = subprocess.Popen(["java", "-Xmx96m", "-cp", cp, "-Dzookeeper.preAllocSize=64",
        "-Dzookeeper.admin.enableServer=false", "org.apache.zookeeper.server.quorum.QuorumPeerMain", f"{dir}/{i}.cfg"],
        stdout=open(f"{dir}/{i}.log", "a"), stderr=subprocess.STDOUT)

def kill(i):
    processes[i].kill(); processes[i].wait()

def leads(i):
    try:
        with socket.create_connection(("127.0.0.1", 28810 + i), 2) as s:
            s.sendall(b"srvr")
            return b"Mode: leader" in b"".join(iter(lambda: s.recv(4096), b""))
    except OSError:
        return False

def leader():
    while True:
        for i in members:
            if leads(i): return i
        time.sleep(1)

for i in members: start(i)
dice = random.Random(1)
for epoch in range(epochs):
    leader()
    z = KazooClient(",".join(f"127.0.0.1:{28810 + i}" for i in members), timeout=30)
    z.start(timeout=120)
    z.ensure_path("/a"); z.create("/a/eph-", b"e", ephemeral=True, sequence=True)
    for n in range(90):
        kind = dice.randrange(6)
        try:
            if kind < 2: z.create("/a/n-", os.urandom(5), sequence=True)
            elif kind == 2: z.set("/a", str(n).encode())
            elif kind == 3:
                t = z.transaction(); t.create(f"/a/t{epoch}-{n}", b"1"); t.set_data("/a", b"x"); t.commit()
            elif kind == 4: z.delete("/a/" + dice.choice([c for c in z.get_children("/a") if c.startswith("n-")]))
            else: z.create(f"/a/b{n % 7}", b"")
        except (NodeExistsError, NoNodeError, IndexError): pass
    # Some sessions end by themselves, some with their servers.
    if epoch % 2 == 0: z.stop(); z.close()
    lost = leader()
    kill(lost)
    if epoch + 1 < epochs: start(lost)
for i in members: kill(i)
