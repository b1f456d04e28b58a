// SPDX-License-Identifier: GPL-2.0-only

//! Bios that device-mapper handed to a target: owned one by one, kept in lists.

use crate::dm::BlockDevice;
use crate::table::Request;
use kernel::prelude::*;
use presnap_machine::blocks::Content;
use presnap_machine::disk;
use presnap_machine::{note, Machine};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

/// A block status, as the block layer counts them; 0 is success.
pub type Status = u8;

/// Success.
pub const STS_OK: Status = 0;
/// Out of space.
pub const STS_NOSPC: Status = 3;
/// It took too long (`BLK_STS_TIMEOUT`).
pub const STS_TIMEOUT: Status = 2;
/// I/O error.
pub const STS_IOERR: Status = 10;

/// What a bio asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// An empty flush.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
    /// Something that a target that does not announce zones never gets.
    Other,
}

/// Plain values that may live in the per-bio data of device-mapper.
pub trait PerBio: Copy + 'static {
    /// As words.
    fn to_words(self) -> [u64; 4];

    /// From words.
    fn from_words(words: [u64; 4]) -> Self;
}

impl PerBio for [u64; 4] {
    fn to_words(self) -> [u64; 4] {
        self
    }

    fn from_words(words: [u64; 4]) -> Self {
        words
    }
}

pub(crate) struct Inner {
    pub(crate) op: Op,
    pub(crate) sector: u64,
    pub(crate) sectors: u32,
    pub(crate) fua: bool,
    /// Of a write, its data; `offset` says where in it this bio begins.
    pub(crate) data: Rc<[u8]>,
    pub(crate) offset: usize,
    pub(crate) aimed: Option<usize>,
    pub(crate) per_bio: [u64; 4],
    /// What of the request it carries out.
    pub(crate) request: Rc<Request>,
    /// The rest is split off within `map`.
    pub(crate) accepted: Rc<Cell<u32>>,
    pub(crate) mirror: Option<Rc<Mirror>>,
    /// The origin has carried it out, or something else has, without an error.
    pub(crate) carried_out: bool,
}

/// A second bio that writes the same data elsewhere; the first one ends when both have.
#[derive(Default)]
pub(crate) struct Mirror {
    status: Cell<Option<Status>>,
    /// The first one has ended already, and waits here.
    waiting: Cell<Option<(Box<Inner>, Status)>>,
}

/// A bio that the holder must end, submit or pass on; dropped, it ends with an I/O error.
pub struct Bio(Option<Box<Inner>>);

impl Bio {
    pub(crate) fn from_inner(inner: Box<Inner>) -> Self {
        Self(Some(inner))
    }

    pub(crate) fn into_inner(mut self) -> Box<Inner> {
        self.0.take().expect("a bio is whole until it is given away")
    }

    fn inner(&self) -> &Inner {
        self.0.as_ref().expect("a bio is whole until it is given away")
    }

    fn inner_mut(&mut self) -> &mut Inner {
        self.0.as_mut().expect("a bio is whole until it is given away")
    }

    /// What it asks for.
    pub fn op(&self) -> Op {
        self.inner().op
    }

    /// First sector on the device it is aimed at now.
    pub fn sector(&self) -> u64 {
        self.inner().sector
    }

    /// Length in sectors.
    pub fn sectors(&self) -> u32 {
        self.inner().sectors
    }

    /// Aims it at `sector` of `dev`.
    pub fn remap(&mut self, dev: &BlockDevice, sector: u64) {
        let inner = self.inner_mut();
        inner.aimed = Some(dev.disk());
        inner.sector = sector;
    }

    pub(crate) fn accept_partial(&mut self, sectors: u32) {
        let inner = self.inner_mut();
        if sectors > 0 && sectors < inner.sectors {
            inner.sectors = sectors;
            inner.accepted.set(sectors);
        }
    }

    /// Ends it with `status`.
    pub fn end(self, status: Status) {
        own_ended(self.into_inner(), status);
    }

    /// Submits it to the device it is aimed at.
    pub fn submit(self) {
        let machine = Machine::current();
        machine.might_sleep();
        submit(&machine, self.into_inner());
    }

    /// Reads its per-bio data.
    pub fn load<D: PerBio>(&self) -> D {
        D::from_words(self.inner().per_bio)
    }

    /// Writes its per-bio data.
    pub fn store<D: PerBio>(&mut self, data: D) {
        self.inner_mut().per_bio = data.to_words();
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            own_ended(inner, STS_IOERR);
        }
    }
}

impl Inner {
    fn content(&self) -> Content {
        let bytes = self.sectors as usize * presnap_machine::blocks::SECTOR;
        match self.op {
            Op::Write => Content::new(self.sector, &self.data[self.offset..self.offset + bytes]),
            _ => Content::Zero,
        }
    }
}

/// Sends a bio to the disk it is aimed at.
pub(crate) fn submit(machine: &Machine, inner: Box<Inner>) {
    let Some(number) = inner.aimed else {
        own_ended(inner, STS_IOERR);
        return;
    };
    note!("bio {:?} {} +{} to disk {number}", inner.op, inner.sector, inner.sectors);
    let (op, sector, sectors, fua) = (inner.op, inner.sector, inner.sectors.into(), inner.fua);
    let op = match op {
        Op::Read => disk::Op::Read,
        Op::Flush => disk::Op::Flush,
        _ => disk::Op::Write(inner.content()),
    };
    let done = Box::new(move |outcome: disk::Outcome| {
        let mut inner = inner;
        match outcome {
            Ok(data) => {
                inner.carried_out = true;
                inner.request.take_data(inner.offset, data);
                own_ended(inner, STS_OK);
            }
            Err(_) => own_ended(inner, STS_IOERR),
        }
    });
    machine.submit(number, disk::Request { op, sector, sectors, preflush: false, fua, done });
}

/// The bio itself has ended; with a mirror, that has to come too.
fn own_ended(inner: Box<Inner>, status: Status) {
    if let Some(mirror) = inner.mirror.clone() {
        if mirror.status.get().is_none() {
            mirror.waiting.set(Some((inner, status)));
            return;
        }
    }
    ended(&inner, status);
}

fn ended(inner: &Inner, status: Status) {
    let mirror = inner.mirror.as_ref().and_then(|mirror| mirror.status.get());
    let machine = Machine::current();
    let target = inner.request.target();
    let status = machine.atomic(|| target.end_io(inner.per_bio, status, mirror));
    inner.request.piece_ended(status, inner.carried_out);
}

/// A first-in, first-out list of bios.
#[derive(Default)]
pub struct BioList(VecDeque<Bio>);

impl BioList {
    /// An empty list.
    pub const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Number of bios.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a bio at the end.
    pub fn push(&mut self, bio: Bio) {
        self.0.push_back(bio);
    }

    /// Takes the first bio.
    pub fn pop(&mut self) -> Option<Bio> {
        self.0.pop_front()
    }

    /// Takes all bios.
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Moves all bios of `other` to the end.
    pub fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }
}

/// A pool of bios for mirrors.
pub struct MirrorPool;

impl MirrorPool {
    /// Creates a pool.
    pub fn new() -> impl PinInit<Self, Error> {
        Ok(Self)
    }

    /// Submits a mirror of `bio` to `sector` of `dev`; the bio ends only when both have. `false`, and
    /// nothing done, when there is no memory at once or when the bio has a mirror already.
    pub fn mirror<D: PerBio>(&self, bio: &mut Bio, dev: &BlockDevice, sector: u64) -> bool {
        let machine = Machine::current();
        let inner = bio.inner_mut();
        if inner.mirror.is_some() || machine.alloc_fails() {
            return false;
        }
        let mirror = Rc::new(Mirror::default());
        inner.mirror = Some(mirror.clone());
        let bytes = inner.sectors as usize * presnap_machine::blocks::SECTOR;
        let data = &inner.data[inner.offset..inner.offset + bytes];
        let done = Box::new(move |outcome: disk::Outcome| {
            let status = if outcome.is_ok() { STS_OK } else { STS_IOERR };
            mirror.status.set(Some(status));
            if let Some((first, status)) = mirror.waiting.take() {
                ended(&first, status);
            }
        });
        note!("mirror {sector} +{}", inner.sectors);
        let request = disk::Request {
            op: disk::Op::Write(Content::new(sector, data)),
            sector,
            sectors: inner.sectors.into(),
            preflush: false,
            fua: inner.fua,
            done,
        };
        machine.submit(dev.disk(), request);
        true
    }
}
