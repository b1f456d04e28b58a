// SPDX-License-Identifier: GPL-2.0-only

//! The user: writes, discards, flushes, snapshots, deletions, views, in an order that the seed makes up.

use crate::config::{Config, Trouble};
use crate::image::Image;
use crate::run::reached;
use crate::world::{World, ORIGIN, REGION};
use fastrand::Rng;
use presnap_abi::bio::{Op, Status, STS_NOSPC, STS_OK, STS_TIMEOUT};
use presnap_abi::dm::DeviceNumber;
use presnap_abi::table::{Ended, Table};
use presnap_machine::blocks::{Blocks, BLOCK_SECTORS, SECTOR};
use presnap_machine::note;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A view of an image, and what it must show.
struct View {
    table: Table<Image>,
    id: u32,
    image: Blocks,
    reads: Rc<Cell<u32>>,
}

/// Where the load goes.
#[derive(Clone, Copy)]
enum Load {
    /// Anywhere.
    Uniform,
    /// Mostly to a few blocks.
    Hot,
    /// One after the other.
    Stream,
}

/// See the module.
pub(crate) struct History {
    rng: RefCell<Rng>,
    left: Cell<u32>,
    wants_snapshot: Cell<bool>,
    wants_reload: Cell<bool>,
    /// No write yet had this number.
    stamp: Cell<u64>,
    load: Cell<Load>,
    at: Cell<u64>,
    views: RefCell<Vec<View>>,
    view_numbers: Cell<u32>,
    held: RefCell<Vec<u32>>,
}

impl History {
    pub(crate) fn new(mut rng: Rng, _config: &Config) -> Self {
        let stamp = rng.u64(..);
        Self {
            rng: RefCell::new(rng),
            left: Cell::new(0),
            wants_snapshot: Cell::new(false),
            wants_reload: Cell::new(false),
            stamp: Cell::new(stamp),
            load: Cell::new(Load::Uniform),
            at: Cell::new(0),
            views: RefCell::default(),
            view_numbers: Cell::new(0),
            held: RefCell::default(),
        }
    }

    /// So many actions are to come.
    pub(crate) fn begin(&self, actions: u32) {
        self.left.set(actions);
    }

    /// The next action shall be a snapshot.
    pub(crate) fn want_snapshot(&self) {
        self.wants_snapshot.set(true);
    }

    /// No action comes until the next [`History::begin`]; returns how many are left.
    pub(crate) fn pause(&self) -> u32 {
        self.wants_reload.set(false);
        self.left.take()
    }

    /// Whether the table shall be reloaded.
    pub(crate) fn wants_reload(&self) -> bool {
        self.wants_reload.get()
    }

    /// Whether there are actions to come.
    pub(crate) fn acts(&self) -> bool {
        self.left.get() > 0
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.borrow_mut().u64(..n.max(1))
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// The next action, and when the one after it comes.
    pub(crate) fn act(&self, world: &World) {
        if self.left.get() == 0 {
            return;
        }
        self.left.set(self.left.get() - 1);
        if self.one_in(50) {
            let loads = [Load::Uniform, Load::Hot, Load::Stream];
            self.load.set(loads[self.below(3) as usize]);
            self.at.set(self.below(world.blocks()));
        }
        if world.config.trouble == Trouble::RegionDies && self.one_in(200) {
            note!("the region dies");
            world.machine.disk_mut(REGION, |disk, _| disk.faults.dead = true);
        }
        if self.one_in(150) {
            self.wants_reload.set(true);
        }
        if self.one_in(200) {
            self.grow(world);
        }
        if self.one_in(120) {
            self.grow_origin(world);
        }
        self.ask_for_snapshot(world);
        match self.below(100) {
            0..=1 => self.delete(world, true),
            2 if self.one_in(4) => {
                let _ = world.message("abort");
            }
            3 => self.hold(world),
            4 => self.change_knob(world),
            5..=24 if world.config.views => self.view(world),
            _ => self.request(world),
        }
        self.delete(world, false);
        let think = self.below(world.config.think_ns);
        // Bursts and pauses.
        let think = if self.one_in(3) { think / 50 } else { think };
        let think = if self.one_in(60) { think * 20 } else { think };
        world.machine.call_user_at(world.machine.now() + think);
    }

    /// The region's disk gets larger; most often presnap is told.
    fn grow(&self, world: &World) {
        let now = world.machine.disk(REGION, |disk| disk.current().len());
        if now > 3 * world.config.region_blocks {
            return;
        }
        let more = [1, 40, 300, 4000][self.below(4) as usize];
        let more = self.below(more.min(now)) + 1;
        note!("the region's disk grows by {more} blocks");
        world.machine.disk_mut(REGION, |disk, _| disk.grow(more));
        if self.one_in(4) {
            return;
        }
        if let Ok(answer) = world.message("grow") {
            let slots: Vec<u32> = answer.split(' ').map(|n| n.parse().expect("a number")).collect();
            assert!(slots[0] <= slots[1], "{answer}");
            reached("regions grown", u64::from(slots[0] < slots[1]));
        }
    }

    /// The origin's disk gets larger, and the table is reloaded with its new length.
    fn grow_origin(&self, world: &World) {
        let now = world.machine.disk(ORIGIN, |disk| disk.current().len());
        if now > 3 * world.config.origin_blocks || world.config.trouble.of_region() {
            return;
        }
        let more = [1, 40, 300][self.below(3) as usize];
        let more = self.below(more.min(now)) + 1;
        note!("the origin's disk grows by {more} blocks");
        world.machine.disk_mut(ORIGIN, |disk, _| disk.grow(more));
        self.wants_reload.set(true);
    }

    fn ask_for_snapshot(&self, world: &World) {
        let wanted = self.wants_snapshot.take();
        if !wanted && !self.one_in(world.config.snapshot_one_in.into()) {
            return;
        }
        let mut words = String::from("snapshot");
        if self.one_in(4) {
            words += if self.one_in(2) { " scope image" } else { " scope delta" };
        }
        let within = self.below(world.config.within_ms + 1);
        if within > 0 {
            words += &format!(" within {within}");
        }
        match self.below(8) {
            0 => words += " freeze_budget 0",
            1 => words += " freeze_budget unlimited",
            _ => {}
        }
        if world.message(&words).is_err() && wanted {
            self.wants_snapshot.set(true);
        }
    }

    /// Deletes the oldest, if there are more than shall be kept.
    fn delete(&self, world: &World, anyway: bool) {
        world.ask();
        let oldest = {
            let told = world.told.borrow();
            let many = told.sealed.len() > world.config.keep;
            told.sealed.first().copied().filter(|_| many || anyway)
        };
        let Some(id) = oldest else { return };
        if world.message(&format!("delete {id}")).is_ok() {
            world.oracle.borrow_mut().deleting.insert(id);
            reached("snapshots deleted", 1);
        }
    }

    fn hold(&self, world: &World) {
        let held = self.held.borrow_mut().pop();
        if let Some(id) = held {
            let _ = world.message(&format!("release {id}"));
            return;
        }
        world.ask();
        let newest = world.told.borrow().sealed.last().copied();
        if self.one_in(3) {
            // One that is not sealed, perhaps: that is refused.
            let next = newest.unwrap_or(0) + 1;
            let refused = world.message(&format!("delete {next}")).is_err();
            assert!(refused, "snapshot {next} is not sealed, and is deleted");
        }
        if let Some(id) = newest.filter(|id| world.message(&format!("hold {id}")).is_ok()) {
            self.held.borrow_mut().push(id);
        }
    }

    fn change_knob(&self, world: &World) {
        let (name, value) = match self.below(4) {
            0 => ("mirror", ["auto", "force", "off"][self.below(3) as usize]),
            1 => ("predictor", ["ewma", "age", "off"][self.below(3) as usize]),
            2 => ("freeze_budget_us", ["0", "100", "unlimited"][self.below(3) as usize]),
            _ => ("threshold_permille", ["0", "300", "1000"][self.below(3) as usize]),
        };
        world.set_knob(name, value);
    }

    /// A range of sectors for a request.
    fn place(&self, world: &World, blocks: u64) -> (u64, u32) {
        let config = &world.config;
        let length = if self.one_in(3) { 1 } else { 1 + self.below(config.longest.into()) };
        let length = if self.one_in(40) { length * 3 } else { length };
        let length = length.min(blocks);
        let first = match self.load.get() {
            Load::Uniform => self.below(blocks - length + 1),
            Load::Hot if self.one_in(5) => self.below(blocks - length + 1),
            Load::Hot => (self.at.get() + self.below(6)) % (blocks - length + 1),
            Load::Stream => {
                let at = self.at.get() % (blocks - length + 1);
                self.at.set(at + length);
                at
            }
        };
        let (mut sector, mut sectors) = (first * BLOCK_SECTORS, length * BLOCK_SECTORS);
        if self.one_in(5) {
            // Not at the borders of blocks.
            let skip = self.below(BLOCK_SECTORS);
            sector += skip;
            sectors -= skip;
            sectors -= self.below(BLOCK_SECTORS.min(sectors));
        }
        (sector, sectors as u32)
    }

    fn request(&self, world: &World) {
        if world.outstanding.get() >= world.config.depth {
            return;
        }
        let (sector, sectors) = self.place(world, world.blocks());
        let op = match self.below(100) {
            0..=4 => Op::Discard,
            5..=9 => Op::WriteZeroes,
            10..=14 => Op::Flush,
            15..=19 => Op::Read,
            _ => Op::Write,
        };
        let (sector, sectors) = if op == Op::Flush { (0, 0) } else { (sector, sectors) };
        let data = if op == Op::Write { self.data(sector, sectors) } else { Vec::new() };
        let fua = op == Op::Write && self.one_in(10);
        note!("user: {op:?} {sector} +{sectors}{}", if fua { " fua" } else { "" });
        world.outstanding.set(world.outstanding.get() + 1);
        let trouble = world.config.trouble;
        let may_lack_room = world.config.fail_writes;
        let outstanding = world.outstanding.clone();
        let table = world.table.borrow();
        let Some(table) = table.as_ref() else { return };
        table.submit(op, sector, sectors, data, fua, move |ended| {
            outstanding.set(outstanding.get() - 1);
            note!("user: {op:?} {sector} +{sectors} ended: {}", ended.status);
            let origin_fails = matches!(trouble, Trouble::OriginReads | Trouble::OriginWrites);
            check_end(op, &ended, origin_fails, may_lack_room);
        });
    }

    /// Content that no other write has.
    fn data(&self, sector: u64, sectors: u32) -> Vec<u8> {
        let stamp = self.stamp.get().wrapping_add(1);
        self.stamp.set(stamp);
        let mut data = Vec::with_capacity(sectors as usize * SECTOR);
        for at in sector..sector + u64::from(sectors) {
            let word = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at.rotate_left(40);
            for _ in 0..SECTOR / 8 {
                data.extend_from_slice(&word.to_le_bytes());
            }
        }
        data
    }

    /// Makes a view, reads from one, or takes one away.
    fn view(&self, world: &World) {
        let count = self.views.borrow().len();
        if count < 3 && self.one_in(6) {
            self.make_view(world);
            return;
        }
        if count == 0 {
            return;
        }
        let n = self.below(count as u64) as usize;
        let idle = self.views.borrow()[n].reads.get() == 0;
        if idle && self.one_in(12) {
            let view = self.views.borrow_mut().swap_remove(n);
            note!("view of {} goes", view.id);
            view.table.suspend();
            return;
        }
        let views = self.views.borrow();
        let view = &views[n];
        let (sector, sectors) = self.place(world, view.image.len());
        let (id, image, reads) = (view.id, view.image.clone(), view.reads.clone());
        reads.set(reads.get() + 1);
        note!("view of {id}: read {sector} +{sectors}");
        view.table.submit(Op::Read, sector, sectors, Vec::new(), false, move |ended| {
            reads.set(reads.get() - 1);
            if ended.status == STS_OK {
                reached("sectors read from views", sectors.into());
                let want = image.read(sector, sectors.into());
                let wrong = (sector..)
                    .zip(ended.data.chunks(SECTOR).zip(want.chunks(SECTOR)))
                    .find(|(_, (found, want))| found != want);
                if let Some((at, _)) = wrong {
                    panic!("a view of image {id} shows another sector {at} than there was at T0");
                }
            }
        });
    }

    fn make_view(&self, world: &World) {
        world.ask();
        let images: Vec<u32> = world.told.borrow().images.iter().copied().collect();
        if images.is_empty() {
            return;
        }
        let id = images[self.below(images.len() as u64) as usize];
        let oracle = world.oracle.borrow();
        if oracle.tainted.contains(&id) {
            return;
        }
        let image = oracle.taken[&id].image.clone();
        drop(oracle);
        let number = DeviceNumber::of_mapped(2 + self.view_numbers.get() % 8);
        self.view_numbers.set(self.view_numbers.get() + 1);
        let sectors = image.sectors();
        let words = format!("{} {id}", world.number);
        match Table::<Image>::load(number, sectors, &words) {
            Ok(table) => {
                table.resume().expect("a view resumes");
                note!("view of {id} comes");
                self.views.borrow_mut().push(View { table, id, image, reads: Rc::default() });
            }
            Err(e) => note!("view of {id} refused: {}", e.why),
        }
    }

    /// Releases what is held; views go when their reads have ended.
    pub(crate) fn let_go(&self, world: &World) {
        world.machine.wait_for(|| self.views.borrow().iter().all(|v| v.reads.get() == 0));
        self.drop_views();
        for id in self.held.take() {
            let _ = world.message(&format!("release {id}"));
        }
    }

    /// Takes all views away; while there are some, `refused` must hold.
    pub(crate) fn close_views(&self, world: &World, refused: impl Fn() -> bool) {
        if !self.views.borrow().is_empty() {
            assert!(refused(), "the origin grows under a view");
            reached("origins not grown under a view", 1);
        }
        world.machine.wait_for(|| self.views.borrow().iter().all(|v| v.reads.get() == 0));
        self.drop_views();
    }

    /// Takes all views away.
    pub(crate) fn drop_views(&self) {
        for view in self.views.take() {
            view.table.suspend();
        }
    }
}

/// A request must end well, unless there is a reason for it.
fn check_end(op: Op, ended: &Ended, origin_fails: bool, may_lack_room: bool) {
    let excused = |status: Status| {
        origin_fails
            || (matches!(status, STS_NOSPC | STS_TIMEOUT) && may_lack_room && op != Op::Read)
    };
    if ended.status == STS_NOSPC {
        reached("writes failed for want of room", 1);
    }
    if ended.status == STS_OK {
        assert!(ended.carried_out, "{op:?} ended well, and nobody has done it");
    } else {
        assert!(excused(ended.status), "{op:?} failed with {}", ended.status);
    }
}
