//! What lies on a device, before a region is made there.

use super::disk::{Device, Disk};
use super::layout::{HEAD_COPY, RegionHead, read_head};
use crate::direct::Direct;
use mainstay_core::wire::DecodeError;
use nix::fcntl::OFlag;
use std::fs::OpenOptions;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What lies on a device that is to become a region.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Found {
    /// Zeroes, as far as signatures are known to lie.
    Nothing,
    /// A region of this cluster.
    Own(Box<RegionHead>),
    /// A region of another cluster, by its id.
    Cluster(u64),
    /// Something that has a name: a file system, a partition table, a volume.
    Signature(&'static str),
    /// Bytes without a signature that is known.
    Data,
}

/// Signatures: name, offset, bytes (libblkid's superblocks).
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an XFS file system", 0, b"XFSB"),
    ("a SquashFS file system", 0, b"hsqs"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 54, b"FAT"),
    ("a FAT file system", 82, b"FAT32"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("a disk image of QEMU", 0, b"QFI\xfb"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("a sanlock lockspace or resource", 0, b"\x10\x12\x21\x06"),
    ("a sanlock lockspace or resource", 0, b"\x06\x21\x12\x10"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a Linux software RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a GFS2 file system", 65536, b"\x01\x16\x19\x70"),
    ("a Btrfs file system", 65600, b"_BHRfS_M"),
    ("an OCFS2 file system", 8192, b"OCFSV2"),
    ("a partition table", 510, b"\x55\xaa"),
];

/// Looks what lies on a device.
///
/// # Errors
/// It cannot be read.
pub fn look(path: &Path, cluster: u64) -> io::Result<Found> {
    look_on(&Device::new(path), cluster)
}

pub(super) fn look_on(disk: &dyn Disk, cluster: u64) -> io::Result<Found> {
    let bytes = disk.read(0, 128 << 10)?;
    let copy = usize::try_from(HEAD_COPY).unwrap_or(usize::MAX);
    for at in [0, copy] {
        let head = bytes.get(at..).unwrap_or_default();
        match read_head(cluster, head) {
            Ok(head) => return Ok(Found::Own(Box::new(head))),
            Err(DecodeError::Foreign { found, .. }) => {
                return Ok(Found::Cluster(found));
            }
            Err(_) => {}
        }
    }
    let signed = SIGNATURES.iter().find(|(_, at, signature)| {
        bytes
            .get(*at..)
            .is_some_and(|rest| rest.starts_with(signature))
    });
    Ok(match signed {
        Some((name, _, _)) => Found::Signature(name),
        None if bytes.iter().all(|b| *b == 0) => Found::Nothing,
        None => Found::Data,
    })
}

/// The sector of a device: what it writes as one, 512 or 4096 bytes. A device that emulates small sectors on large
/// ones may tear the neighbours of one that it writes, so its physical sector counts.
///
/// # Errors
/// It cannot be opened.
pub fn sector_of(path: &Path) -> io::Result<u32> {
    let path = std::fs::canonicalize(path)?;
    let device = std::fs::metadata(&path)?.rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let physical = ["queue", "../queue"].iter().find_map(|queue| {
        let file = format!("/sys/dev/block/{major}:{minor}/{queue}/physical_block_size");
        let text = std::fs::read_to_string(file).ok()?;
        text.trim().parse::<u32>().ok()
    });
    let small = physical.is_none_or(|bytes| bytes <= 512) && Direct::takes(&path, 512)?;
    Ok(if small { 512 } else { 4096 })
}

/// Bytes of a device or a file. A device that the kernel uses (mounted, or part of another volume) is refused.
///
/// # Errors
/// It cannot be opened; [`io::ErrorKind::ResourceBusy`] when it is in use.
pub fn size_of(path: &Path) -> io::Result<u64> {
    let path = std::fs::canonicalize(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if std::fs::metadata(&path)?.file_type().is_block_device() {
        // Of a device, and of no file, this asks the kernel for a use that nobody shares.
        options.custom_flags(OFlag::O_EXCL.bits());
    }
    options.open(&path)?.seek(SeekFrom::End(0))
}
