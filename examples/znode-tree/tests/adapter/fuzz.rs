//! Bytes that no client would send, and bytes that nearly are what one would.

use znode_tree::jute::Writer;
use znode_tree::wire::op;

use crate::world::Hello;
use crate::world::World;
use crate::world::body;
use crate::world::create;
use crate::world::path_watch;
use crate::world::request;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.roll(most)).map(|_| self.roll(256) as u8).collect()
    }

    fn path(&mut self) -> String {
        let paths =
            ["/", "/a", "/a/b", "/a/b/c", "/c", "", "a", "/a/", "//", "/zookeeper", "/zookeeper/config", "/x\0"];
        paths[self.roll(paths.len() as u64) as usize].to_owned()
    }

    fn request(&mut self) -> Vec<u8> {
        let operation = match self.roll(8) {
            0 => self.roll(700) as i32 - 20,
            1 => op::CLOSE_SESSION,
            _ => [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15, 17, 18, 19, 21, 22, 100, 101, 103, 104, 105, 106, 107]
                [self.roll(25) as usize],
        };
        let mut rest = match operation {
            op::CREATE | op::CREATE2 | op::CREATE_CONTAINER => create(&self.path(), "data", self.roll(7) as i32),
            op::AUTH => body(|out| {
                out.i32(0).text("digest").text("a:b");
            }),
            op::SET_WATCHES | op::SET_WATCHES2 => {
                let lists: Vec<Vec<String>> =
                    (0..5).map(|_| (0..self.roll(4)).map(|_| self.path()).collect()).collect();
                body(|out| {
                    out.i64(0);
                    lists.iter().for_each(|list| {
                        out.texts(list.iter());
                    });
                })
            }
            op::SET_DATA => {
                let path = self.path();
                body(|out| {
                    out.text(&path).text("new").i32(-1);
                })
            }
            op::DELETE | op::CHECK_WATCHES | op::REMOVE_WATCHES | op::ADD_WATCH => {
                let (path, number) = (self.path(), self.roll(7) as i32 - 1);
                body(|out| {
                    out.text(&path).i32(number);
                })
            }
            _ => path_watch(&self.path(), self.roll(2) == 0),
        };
        match self.roll(6) {
            0 => rest.truncate(self.roll(rest.len() as u64 + 1) as usize),
            1 => rest.extend(self.bytes(20)),
            2 if !rest.is_empty() => {
                let at = self.roll(rest.len() as u64) as usize;
                rest[at] = self.roll(256) as u8;
            }
            _ => {}
        }
        request(self.roll(1 << 20) as i32, operation, &rest)
    }
}

#[test]
fn random_bytes_break_nothing() {
    let mut world = World::new(1);
    let mut honest = world.connect(0);
    let mut dice = Dice(1);
    for _ in 0..3_000 {
        let peer = world.dial(0);
        if dice.roll(2) == 0 {
            world.send(&peer, &Hello::default().frame());
        }
        for _ in 0..dice.roll(4) {
            let bytes = dice.bytes(200);
            world.send(&peer, &bytes);
            if dice.roll(2) == 0 {
                world.desk.run();
            }
        }
        world.desk.hang_up(peer.client);
    }
    assert_eq!(world.error(&mut honest, op::EXISTS, &path_watch("/", false)), 0);
}

#[test]
fn requests_that_are_nearly_right_break_nothing_and_are_answered_in_order() {
    for (params, settings) in
        [("{}", "{}"), (r#"{"compatibility":"clickhouse"}"#, r#"{"params":{"compatibility":"clickhouse"}}"#)]
    {
        let mut world = World::with(2, params, settings);
        let mut dice = Dice(7);
        for _ in 0..300 {
            let mut peer = world.connect(dice.roll(2) as usize);
            let mut bytes = Vec::new();
            for _ in 0..dice.roll(30) {
                bytes.extend(dice.request());
            }
            let asked: Vec<i32> = xids(&bytes);
            while !bytes.is_empty() {
                let piece = bytes.split_off(bytes.len().min(1 + dice.roll(100) as usize));
                world.send(&peer, &std::mem::replace(&mut bytes, piece));
                if dice.roll(3) == 0 {
                    world.desk.run();
                }
            }
            let answered: Vec<i32> =
                world.all(&mut peer).iter().map(|reply| reply.xid).filter(|xid| *xid >= 0).collect();
            let mut asked = asked.iter();
            assert!(answered.iter().all(|xid| asked.any(|asked| asked == xid)), "in order, and none made up");
            if dice.roll(2) == 0 {
                world.desk.hang_up(peer.client);
            }
            if dice.roll(10) == 0 {
                world.desk.advance(dice.roll(20_000));
            }
        }
    }
}

/// The xids of the frames in these bytes.
fn xids(mut bytes: &[u8]) -> Vec<i32> {
    let mut xids = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at(i32::from_be_bytes(*length) as usize);
        xids.push(i32::from_be_bytes(*frame.first_chunk().unwrap()));
        bytes = rest;
    }
    xids
}

/// One byte short, one too many, each field at its worst: for every length in a frame.
#[test]
fn no_length_is_believed() {
    let mut world = World::new(1);
    for operation in (1..25).chain(100..110) {
        for length in [i32::MIN, -2, -1, 0, 1, 1 << 20, i32::MAX] {
            let mut peer = world.connect(0);
            let mut rest = Vec::new();
            Writer::new(&mut rest).i32(length).raw(b"/abc").i32(length).i32(length);
            world.send(&peer, &request(1, operation, &rest));
            world.desk.run();
            assert!(world.all(&mut peer).len() <= 3);
        }
    }
}
