// SPDX-License-Identifier: GPL-2.0-only

//! The region on disk: where everything lies, and how it is encoded and checked.
//!
//! All integers are little-endian. Every structure has a CRC32C and two copies; nothing read from disk is
//! trusted: each field is checked against what the caller knows. `docs/region-format.md` has the bytes.
//!
//! | block | what |
//! |---|---|
//! | 0, 15 | superblock, two equal copies |
//! | 16..24, 24..32 | root (snapshot table), two copies, written in turn |
//! | 32..40, 40..48 | intent map, two copies, written in turn |
//! | 48..112 | intent log, a ring |
//! | 128.. | segments of 4096 blocks: 16 index blocks in two copies each, written in turn, and 4064 slots |

use core::fmt;

pub(crate) mod bytes;
pub mod index;
pub mod intent;
pub mod layout;
pub mod origin;
pub mod root;
pub mod superblock;

pub use index::{IndexBlock, IndexEntry, IndexPick, SlotKind, UnconfirmedSlots};
pub use intent::{Extents, IntentMap};
pub use layout::{Layout, LayoutError};
pub use origin::{OriginError, OriginGrowth};
pub use root::{Root, RootHeader, Scope, SnapshotRecord, SnapshotState};
pub use superblock::Superblock;

/// "No slot", where a slot number is optional.
pub const NO_SLOT: u32 = u32::MAX;
/// Block numbers of the origin are below this: the index keeps 48 bits.
pub const MAX_ORIGIN_BLOCKS: u64 = 1 << 48;

/// The structure that a [`FormatError`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The superblock.
    Superblock,
    /// The root, that is the snapshot table.
    Root,
    /// A record of the root.
    Snapshot,
    /// An index block.
    Index,
    /// A manifest page.
    Manifest,
    /// A copy of the intent map.
    IntentMap,
    /// A record of the intent log.
    IntentLog,
}

impl Part {
    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Root => "root",
            Self::Snapshot => "snapshot record",
            Self::Index => "index block",
            Self::Manifest => "manifest page",
            Self::IntentMap => "intent map",
            Self::IntentLog => "intent log record",
        }
    }
}

/// What is wrong with a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Fewer bytes than the structure has.
    Short,
    /// The magic number is another.
    Magic,
    /// A format version this engine does not know.
    Version,
    /// The checksum does not match the content.
    Checksum,
    /// Reserved bytes are not zero.
    Reserved,
    /// It belongs to another region.
    Foreign,
    /// It belongs to another place, or to another snapshot.
    Misplaced,
    /// The two copies are both valid and differ.
    Copies,
    /// The region is too small, or its size and number of slots do not go together.
    Size,
    /// The origin has no sectors or too many.
    Origin,
    /// Flags this engine does not know.
    Flags,
    /// More entries than fit.
    Count,
    /// Entries are not in ascending order, or overlap.
    Order,
    /// A snapshot number that cannot be.
    SnapshotId,
    /// A base that is not older than the snapshot.
    BaseId,
    /// An operation number that was not handed out yet, or a range that runs backwards.
    OpRange,
    /// An unknown state.
    State,
    /// An unknown scope.
    Scope,
    /// An unknown kind of entry.
    Kind,
    /// A slot outside of the region.
    Slot,
    /// A block outside of the origin.
    Block,
    /// A number that is counted up has come so far that it could end.
    Exhausted,
}

impl Fault {
    /// Returns the words for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Short => "is cut short",
            Self::Magic => "has the wrong magic number",
            Self::Version => "has an unknown format version",
            Self::Checksum => "has a wrong checksum",
            Self::Reserved => "has reserved bytes that are not zero",
            Self::Foreign => "belongs to another region",
            Self::Misplaced => "belongs to another place or snapshot",
            Self::Copies => "has two valid copies that differ",
            Self::Size => "has a region size that does not fit its slots",
            Self::Origin => "has an impossible origin size",
            Self::Flags => "has unknown flags",
            Self::Count => "has more entries than fit",
            Self::Order => "has entries out of order",
            Self::SnapshotId => "has an impossible snapshot number",
            Self::BaseId => "has a base that is not older than the snapshot",
            Self::OpRange => "has an impossible operation range",
            Self::State => "has an unknown state",
            Self::Scope => "has an unknown scope",
            Self::Kind => "has an unknown kind of entry",
            Self::Slot => "has a slot outside of the region",
            Self::Block => "has a block outside of the origin",
            Self::Exhausted => "has numbers that are nearly used up",
        }
    }
}

/// Why a structure on disk was refused; displayed as a sentence ("index block has a wrong checksum").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The structure.
    pub part: Part,
    /// What is wrong with it.
    pub fault: Fault,
}

impl FormatError {
    pub(crate) const fn new(part: Part, fault: Fault) -> Self {
        Self { part, fault }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.part.as_str(), self.fault.as_str())
    }
}

/// Which of the two copies of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy2 {
    /// The first copy.
    A,
    /// The second copy.
    B,
}

impl Copy2 {
    /// Returns the other one: where the next version goes.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Returns 0 or 1.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The better copy of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked<T> {
    /// Which copy it is.
    pub copy: Copy2,
    /// What it says.
    pub value: T,
    /// What is wrong with the other copy: a torn write of the last version, or decay.
    pub other_fault: Option<FormatError>,
}

/// What the fields of root, index and manifest are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Identity of the region.
    pub region_uuid: [u8; 16],
    /// Number of slots.
    pub slots: u32,
    /// Number of blocks of the origin, the last one perhaps in part.
    pub origin_blocks: u64,
    /// The number of the next snapshot, as the root says. Not used for the root itself.
    pub next_snapshot: u32,
}

impl Limits {
    /// Returns the low half of the region's uuid, the short identity in index blocks.
    pub fn region_tag(&self) -> u64 {
        region_tag(&self.region_uuid)
    }

    /// Whether the region may hold blocks for a snapshot: also for the coming one, and for the one after it when
    /// staging went on before the root with the last one was durable.
    fn snapshot_ok(&self, id: u32) -> bool {
        id != 0 && id <= self.next_snapshot.saturating_add(1)
    }
}

/// Whether a number that is counted up may be gone on from. No region gets to half of 64 bits, or in a century to half
/// of 32, by counting; one that says so was made to, and its next version would be taken for an older one.
fn has_room(number: u64, most: u64) -> bool {
    number <= most >> 1
}

/// Returns the low half of a region's uuid, the short identity in index blocks.
pub fn region_tag(uuid: &[u8; 16]) -> u64 {
    uuid.first_chunk::<8>().map_or(0, |half| u64::from_le_bytes(*half))
}

/// Picks the copy with the higher sequence number; of equal ones the first.
fn pick_newer<T>(
    a: Result<T, FormatError>,
    b: Result<T, FormatError>,
    seq: impl Fn(&T) -> u64,
) -> Result<Picked<T>, FormatError> {
    match (a, b) {
        (Ok(a), Ok(b)) if seq(&b) > seq(&a) => {
            Ok(Picked { copy: Copy2::B, value: b, other_fault: None })
        }
        (Ok(a), Ok(_)) => Ok(Picked { copy: Copy2::A, value: a, other_fault: None }),
        (Ok(a), Err(e)) => Ok(Picked { copy: Copy2::A, value: a, other_fault: Some(e) }),
        (Err(e), Ok(b)) => Ok(Picked { copy: Copy2::B, value: b, other_fault: Some(e) }),
        (Err(e), Err(_)) => Err(e),
    }
}
