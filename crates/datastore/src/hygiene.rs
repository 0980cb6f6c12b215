//! Whether a mounted directory can keep what a `file` datastore promises: mount options, direct I/O, locks on images,
//! and how long a renewal takes. Asked for by an administrator; changes no record.
//!
//! What an option means is from nfs(5), mount.cifs(8) and gfs2(5). What matters here: a swap of a lock is an exclusive
//! link, which the server decides whatever a client has cached, so that caching makes a host late and never wrong.
//! What a client keeps for itself although it must be shared, such as locks on images, breaks a promise.

use crate::directory::{Directory as _, Mounted, write_new};
use crate::error::OpenError;
use crate::file::FileDatastore;
use crate::probe;
use mainstay_core::id::{DatastoreId, HostId};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Renewals that are measured.
pub(crate) const RENEWALS: usize = 8;

/// What a finding means.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// It works, less well than it could.
    Weakens,
    /// Something that Mainstay says of this datastore is not true.
    Breaks,
}

/// Something that should be otherwise, with the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advice {
    /// What it means.
    pub weight: Weight,
    /// What it is, and the remedy.
    pub text: String,
}

fn advice(weight: Weight, text: impl Into<String>) -> Advice {
    let text = text.into();
    Advice { weight, text }
}

/// A mount, as the kernel tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    /// The file system, such as `nfs4`.
    pub fs_type: String,
    /// What is mounted, such as `server:/export`.
    pub source: String,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
}

/// A field of mountinfo: space, tab, newline and backslash are written as three octal digits (proc(5)).
fn unescaped(field: &str) -> String {
    let mut out = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A line of `/proc/self/mountinfo` (proc(5)). None: it is none.
fn parsed(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(4);
    let (point, own) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let (fs_type, source) = (file_system.next()?, file_system.next()?);
    let more = file_system.next().unwrap_or_default();
    let options = own.split(',').chain(more.split(','));
    Some(Mount {
        point: unescaped(point).into(),
        fs_type: fs_type.to_owned(),
        source: unescaped(source),
        options: options.filter(|o| !o.is_empty()).map(unescaped).collect(),
    })
}

/// The mount on which a path lies, by the text of `/proc/self/mountinfo`. The path has no links in it.
#[must_use]
pub fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parsed);
    // Of several at one place the last one covers the others.
    mounts
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())
}

impl Mount {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }

    fn value(&self, option: &str) -> Option<&str> {
        let values = self.options.iter().filter_map(|own| own.split_once('='));
        let mut values = values.filter(|(name, _)| *name == option);
        values.next().map(|(_, value)| value)
    }
}

/// What of a mount does not fit a datastore. `enforced` says that its fence class is: that the storage lets one host
/// alone write an image.
#[must_use]
pub fn judge(mount: &Mount, enforced: bool) -> Vec<Advice> {
    let mut found = Vec::new();
    if mount.has("ro") {
        let text = "it is mounted read-only (ro), so that no heartbeat can be written; mount it rw";
        found.push(advice(Weight::Breaks, text));
    }
    match mount.fs_type.as_str() {
        "nfs" | "nfs4" => judge_nfs(mount, enforced, &mut found),
        "cifs" | "smb3" => judge_cifs(mount, enforced, &mut found),
        "gfs2" | "ocfs2" if mount.has("localflocks") => {
            found.push(local_locks("localflocks", enforced));
        }
        "fuse.sshfs" => {
            let text = "sshfs keeps locks to itself and caches what it read; take NFS, GFS2, OCFS2, CephFS or GlusterFS";
            found.push(advice(Weight::Breaks, text));
        }
        "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "tmpfs" | "overlay" | "zfs" => {
            found.push(advice(
                Weight::Breaks,
                format!(
                    "{} is a file system of one host: no other host sees what is written there, and mounting its device on two \
                     destroys it; take a shared file system, or give the device to a datastore of kind block",
                    mount.fs_type
                ),
            ));
        }
        _ => {}
    }
    found
}

fn local_locks(option: &str, enforced: bool) -> Advice {
    let weight = match enforced {
        true => Weight::Breaks,
        false => Weight::Weakens,
    };
    advice(
        weight,
        format!(
            "{option}: each host keeps the locks on images to itself, so that two hosts can open one image; mount without it, \
             or say fence = \"open\" in cluster.toml"
        ),
    )
}

fn judge_nfs(mount: &Mount, enforced: bool, found: &mut Vec<Advice>) {
    let version = mount.value("vers").unwrap_or_default();
    let is_old = version.starts_with('2') || version.starts_with('3');
    let locks = mount.value("local_lock").unwrap_or("none");
    if (is_old && mount.has("nolock")) || matches!(locks, "all" | "posix") {
        let option = match mount.has("nolock") {
            true => "nolock".to_owned(),
            false => format!("local_lock={locks}"),
        };
        found.push(local_locks(&option, enforced));
    }
    if is_old {
        found.push(advice(
            Weight::Weakens,
            format!(
                "vers={version}: the server keeps the locks of a lost host until that host boots again, so that its VMs wait for their \
                 images; mount with vers=4.1 or newer, whose locks end with a lease"
            ),
        ));
    }
    if mount
        .value("proto")
        .is_some_and(|proto| proto.starts_with("udp"))
    {
        let text = "proto=udp: fragments of lost datagrams can end in other ones at high speed (nfs(5)); mount with proto=tcp";
        found.push(advice(Weight::Breaks, text));
    }
    for option in ["soft", "softerr"] {
        if mount.has(option) {
            found.push(advice(
                Weight::Breaks,
                format!(
                    "{option}: when the server is slow, guests get I/O errors in place of a pause, and what they were told failed may still \
                     be written; mount with hard"
                ),
            ));
        }
    }
    if mount.has("nocto") {
        let text = "nocto: files are opened from what this host remembers of them, so that a list that was replaced is read as it was before; mount with cto";
        found.push(advice(Weight::Breaks, text));
    }
    let names = mount.value("lookupcache").unwrap_or("all");
    let remembers = |option: &str, default: u64| {
        let value = mount.value(option).and_then(|value| value.parse().ok());
        value.unwrap_or(default)
    };
    let longest = remembers("acdirmax", 60);
    if !mount.has("noac") && names == "all" && longest > 0 {
        found.push(advice(
            Weight::Weakens,
            format!(
                "lookupcache=all: a name that was not there is believed to be missing for up to {longest} s (acdirmax), so that the next \
                 generation of a lock is noticed late; mount with lookupcache=none"
            ),
        ));
    }
    if mount.has("fsc") {
        let text = "fsc: what is read without O_DIRECT, as images may be, is kept on a disk of this host; mount without it";
        found.push(advice(Weight::Weakens, text));
    }
}

fn judge_cifs(mount: &Mount, enforced: bool, found: &mut Vec<Advice>) {
    if mount.has("nobrl") {
        found.push(local_locks("nobrl", enforced));
    }
    if mount.has("soft") {
        let text = "soft: when the server is slow, guests get I/O errors in place of a pause; mount with hard";
        found.push(advice(Weight::Breaks, text));
    }
    if mount.value("cache") == Some("loose") {
        let text = "cache=loose: reads come from what this host remembers; mount with cache=none";
        found.push(advice(Weight::Breaks, text));
    }
}

/// What renewals that took so long mean for a host whose right to run lasts for `freeze` and that renews it each
/// `interval`. What is left for a renewal is `freeze` without one interval: then the next one must have been done.
#[must_use]
pub fn judge_renewals(took: &[Duration], freeze: Duration, interval: Duration) -> Option<Advice> {
    let worst = took.iter().max()?;
    let bound = freeze.saturating_sub(interval);
    let numbers = format!(
        "the slowest of {} renewals took {} ms, and the profile leaves {} ms for one (freeze {} ms without the interval of {} ms)",
        took.len(),
        worst.as_millis(),
        bound.as_millis(),
        freeze.as_millis(),
        interval.as_millis()
    );
    if *worst >= bound {
        let text = format!(
            "{numbers}: VMs here are frozen again and again; take faster storage or a slower profile"
        );
        return Some(advice(Weight::Breaks, text));
    }
    // Half of it: storage that is twice as slow for a moment, as any is, must freeze nobody.
    (*worst >= bound / 2).then(|| {
        let text = format!("{numbers}: a busy moment will freeze the VMs here; take faster storage or a slower profile");
        advice(Weight::Weakens, text)
    })
}

/// What a check of a `file` datastore found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hygiene {
    /// The mount; none: the kernel does not tell.
    pub mount: Option<Mount>,
    /// How long writes like a heartbeat's took, one after the other.
    pub renewals: Vec<Duration>,
    /// What should be otherwise.
    pub advice: Vec<Advice>,
}

/// What a datastore is held against.
#[derive(Clone, Copy, Debug)]
pub struct Demands<'a> {
    /// The text of `/proc/self/mountinfo`.
    pub mountinfo: &'a str,
    /// Its fence class is `enforced`.
    pub enforced: bool,
    /// The right to run of the profile.
    pub freeze: Duration,
    /// Time between two heartbeats.
    pub interval: Duration,
    /// The hosts of the cluster.
    pub hosts: &'a [HostId],
}

impl FileDatastore {
    /// Checks a datastore from this host, beside its agent or without one. A file is made and removed.
    ///
    /// # Errors
    /// [`OpenError`]: it is missing, foreign, damaged, or does not answer.
    pub fn check(
        mount: &Path,
        cluster: u64,
        id: &DatastoreId,
        host: &HostId,
        demands: &Demands<'_>,
    ) -> Result<Hygiene, OpenError> {
        let datastore = Self::attach(mount, cluster, id, host)?;
        let io = |source| OpenError::Io {
            datastore: id.clone(),
            path: mount.into(),
            source,
        };
        let place = std::fs::canonicalize(mount).map_err(io)?;
        let found = mount_of(demands.mountinfo, &place);
        let mut advice: Vec<Advice> = found
            .iter()
            .flat_map(|m| judge(m, demands.enforced))
            .collect();
        let temporary = datastore.temporary_name();
        write_new(&temporary, &[0; 4096]).map_err(io)?;
        let measured = measure(&temporary).map_err(io);
        let locks = probe::works(&temporary);
        std::fs::remove_file(&temporary).map_err(io)?;
        let (renewals, is_cached) = measured?;
        advice.extend(judge_renewals(&renewals, demands.freeze, demands.interval));
        if is_cached {
            let text = "its file system refuses O_DIRECT, so that reads may come from a cache of this host; use it only where the cache is coherent between hosts";
            advice.push(self::advice(Weight::Breaks, text));
        }
        advice.extend(judge_locks(&locks, demands.enforced));
        advice.extend(judge_held(&datastore, host, demands));
        advice.sort_by_key(|one| std::cmp::Reverse(one.weight));
        Ok(Hygiene {
            mount: found,
            renewals,
            advice,
        })
    }
}

/// Writes like renewals, and whether they went past the page cache.
fn measure(path: &Path) -> io::Result<(Vec<Duration>, bool)> {
    let files = Mounted::default();
    let mut took = Vec::new();
    for n in 0..RENEWALS {
        let bytes = vec![u8::try_from(n).unwrap_or_default(); 512];
        let began = Instant::now();
        let written = files.write_in_place(path, &[(0, &bytes)]);
        if written.is_err() {
            return Err(io::Error::other("a write in place failed"));
        }
        took.push(began.elapsed());
    }
    files.read(path)?;
    Ok((took, files.is_cached()))
}

fn judge_locks(locks: &io::Result<()>, enforced: bool) -> Option<Advice> {
    let error = locks.as_ref().err()?;
    let weight = match enforced {
        true => Weight::Breaks,
        false => Weight::Weakens,
    };
    let text = format!(
        "locks like those of QEMU on images do not work here ({error}), so that two hosts can open one image; mount with locks, or say \
         fence = \"open\" in cluster.toml"
    );
    Some(advice(weight, text))
}

/// Locks that agents of other hosts hold, as this host sees them.
fn judge_held(datastore: &FileDatastore, own: &HostId, demands: &Demands<'_>) -> Vec<Advice> {
    let others = demands.hosts.iter().filter(|host| *host != own);
    let unseen =
        others.filter(|host| matches!(probe::is_held(datastore.dir(), host), Ok(Some(false))));
    let text = |host: &HostId| {
        format!(
            "the lock that the agent of {host} holds here is not seen: where that agent runs, locks on images are not enforced between \
             hosts; check `nolock` and `local_lock` on both, or say fence = \"open\" in cluster.toml"
        )
    };
    unseen
        .map(|host| advice(Weight::Weakens, text(host)))
        .collect()
}

#[cfg(test)]
mod tests;
