//! Reads a table: each slot by itself, the newest intact copy of it.

use super::super::frame::{DecodeError, Stamp, decode};
use super::{Entry, Geometry, HEADS, Head, Kind, PAGE_BYTES, Seal, number, size};
use crate::id::VmId;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// What a file of a table holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents<E> {
    /// Who began the file.
    pub stamp: Stamp,
    /// The head's flags.
    pub flags: u32,
    /// The entries, by VM.
    pub entries: BTreeMap<VmId, E>,
    /// Slots of which nothing can be read: VMs may be missing.
    pub lost: u32,
    /// Slots, and heads, of which one copy is damaged and the other stands in for it: what broke off in
    /// the middle of its write, or the state before the page's last change.
    pub fallen_back: u32,
}

/// A slot as it was read.
#[derive(Clone)]
enum Cell<E> {
    /// Never written.
    Blank,
    Damaged,
    Empty(u64),
    /// `None`: the second slot of an entry.
    Full(u64, Option<E>),
}

impl<E> Cell<E> {
    /// The version of its page; 0: none.
    fn version(&self) -> u64 {
        match self {
            Self::Blank | Self::Damaged => 0,
            Self::Empty(version) | Self::Full(version, _) => *version,
        }
    }
}

/// Reads a table's file.
///
/// # Errors
/// [`DecodeError`] when the head is not that of a sound table of this kind and cluster. Damage behind the
/// head is told in [`Contents`].
pub fn read<E: Entry>(cluster: u64, file: &[u8]) -> Result<Contents<E>, DecodeError> {
    read_pages(cluster, file, 0..usize::MAX)
}

/// Reads only the page of a table that lies in this page of its file, whichever copy of it that is: what a
/// follower of the file looks at when one page was written. Answers the page's number in the table besides.
///
/// # Errors
/// [`DecodeError`] as [`read`], and when a head lies there.
pub fn read_page_at<E: Entry>(
    cluster: u64,
    file: &[u8],
    file_page: u32,
) -> Result<(u32, Contents<E>), DecodeError> {
    let behind = size(file_page)
        .checked_sub(HEADS)
        .ok_or(DecodeError::Body)?;
    let page = behind / Geometry::<E>::COPIES;
    let contents = read_pages(cluster, file, page..page + 1)?;
    Ok((number(page), contents))
}

fn read_pages<E: Entry>(
    cluster: u64,
    file: &[u8],
    wanted: Range<usize>,
) -> Result<Contents<E>, DecodeError> {
    let first = decode::<Head>(E::KIND, cluster, file);
    let spared = u32::from(first.is_err());
    let (stamp, head) = first.or_else(|error| {
        let second = file.get(PAGE_BYTES..).unwrap_or_default();
        decode::<Head>(E::KIND, cluster, second).map_err(|_| error)
    })?;
    let known = head.slot_bytes == number(E::SLOT_BYTES) && head.twins == E::TWINS;
    if !known || size(head.pages) > Geometry::<E>::PAGES {
        return Err(DecodeError::Body);
    }
    let seal = Seal::new(cluster, &stamp);
    let mut contents = Contents {
        stamp,
        flags: head.flags,
        entries: BTreeMap::new(),
        lost: 0,
        fallen_back: spared,
    };
    let stored = file.len().div_ceil(PAGE_BYTES).saturating_sub(HEADS);
    let pages = stored.div_ceil(Geometry::<E>::COPIES).max(size(head.pages));
    for page in wanted.start..wanted.end.min(pages) {
        let cells = |copy| read_page::<E>(&seal, file, Geometry::<E>::file_page(page, copy));
        let first = cells(0);
        let second = if E::TWINS { cells(1) } else { first.clone() };
        for (one, other) in first.into_iter().zip(second) {
            take(&mut contents, one, other, page < size(head.pages));
        }
    }
    Ok(contents)
}

/// Takes the newer of two copies of a slot.
fn take<E: Entry>(contents: &mut Contents<E>, one: Cell<E>, other: Cell<E>, written: bool) {
    let damaged = [&one, &other].iter().any(|c| matches!(c, Cell::Damaged));
    let newest = if one.version() >= other.version() {
        one
    } else {
        other
    };
    match newest {
        Cell::Damaged => contents.lost += 1,
        Cell::Blank if damaged || written => contents.lost += 1,
        Cell::Blank => {}
        Cell::Empty(_) | Cell::Full(_, None) => contents.fallen_back += u32::from(damaged),
        Cell::Full(_, Some(entry)) => {
            contents.fallen_back += u32::from(damaged);
            contents.entries.insert(entry.vm().clone(), entry);
        }
    }
}

/// Reads one copy of a page.
fn read_page<E: Entry>(seal: &Seal, file: &[u8], file_page: usize) -> Vec<Cell<E>> {
    let start = file_page.saturating_mul(PAGE_BYTES).min(file.len());
    let end = (start + PAGE_BYTES).min(file.len());
    let page = file.get(start..end).unwrap_or_default();
    let per_page = Geometry::<E>::PER_PAGE;
    let parts: Vec<Part<'_>> = (0..per_page)
        .map(|index| {
            let slot = Geometry::<E>::slot(index);
            let bytes = page
                .get(slot.start.min(page.len())..slot.end.min(page.len()))
                .unwrap_or_default();
            read_slot(seal, file_page, index, bytes, E::SLOT_BYTES)
        })
        .collect();
    // A page is written whole: zeroes beside a slot that was written are damage.
    let written = !parts.iter().all(|p| matches!(p, Part::Blank));
    let mut cells = Vec::with_capacity(per_page);
    while let Some(part) = parts.get(cells.len()) {
        let next = parts.get(cells.len() + 1);
        match (part, next) {
            (Part::Blank, _) if !written => cells.push(Cell::Blank),
            (Part::Sound(version, Kind::Empty, _), _) => cells.push(Cell::Empty(*version)),
            (Part::Sound(version, Kind::Single, payload), _) => {
                let entry = E::from_bytes(payload).map(|e| Cell::Full(*version, Some(e)));
                cells.push(entry.unwrap_or(Cell::Damaged));
            }
            (
                Part::Sound(version, Kind::First, first),
                Some(Part::Sound(same, Kind::Second, second)),
            ) if version == same => match E::from_bytes(&[*first, *second].concat()) {
                Some(entry) => {
                    cells.extend([
                        Cell::Full(*version, Some(entry)),
                        Cell::Full(*version, None),
                    ]);
                }
                None => cells.extend([Cell::Damaged, Cell::Damaged]),
            },
            // Half an entry is none.
            (Part::Blank | Part::Damaged | Part::Sound(_, Kind::First | Kind::Second, _), _) => {
                cells.push(Cell::Damaged);
            }
        }
    }
    cells
}

/// The bytes of a slot, judged alone.
enum Part<'a> {
    Blank,
    Damaged,
    Sound(u64, Kind, &'a [u8]),
}

fn read_slot<'a>(
    seal: &Seal,
    file_page: usize,
    index: usize,
    bytes: &'a [u8],
    len: usize,
) -> Part<'a> {
    if bytes.iter().all(|b| *b == 0) {
        return Part::Blank;
    }
    let sound = || {
        let (checksum, rest) = bytes.split_first_chunk::<4>()?;
        if rest.len() + 4 != len
            || u32::from_le_bytes(*checksum) != seal.checksum(file_page, index, rest)
        {
            return None;
        }
        let (version, rest) = rest.split_first_chunk::<8>()?;
        let (kind, rest) = rest.split_first()?;
        let (length, payload) = rest.split_first()?;
        let payload = payload.get(..usize::from(*length))?;
        let version = u64::from_le_bytes(*version);
        // No page has version 0: it would pass for one that was never written.
        (version > 0).then_some(Part::Sound(version, Kind::of(*kind)?, payload))
    };
    sound().unwrap_or(Part::Damaged)
}
