//! Each fault, as plain file calls see it.

use super::kit::{Lab, comes_true, number, open, skipped};
use mainstay_lab::storage::{Fault, MountSpec};
use nix::errno::Errno;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

#[test]
fn a_mount_is_seen_by_its_host_alone_and_ends_with_its_handle() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (mut one, two) = (lab.host("host-1"), lab.host("host-2"));
    let (path, other) = (one.path("a"), one.path("a"));
    one.run(|| fs::write(&path, "hello")).unwrap();
    assert_eq!(fs::read(lab.backing("a")).unwrap(), b"hello");
    assert!(!path.exists(), "mounted outside of the host");
    assert!(!two.run(|| other.exists()), "mounted on another host");
    let theirs = two.path("a");
    assert_eq!(two.run(|| fs::read(&theirs)).unwrap(), b"hello");
    one.mount = None;
    assert!(!one.run(|| path.exists()));
}

#[test]
fn what_hangs_lands_in_order_when_healed() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = Arc::new(host.open("disk"));
    file.write_all_at(&[0; 4096], 0).unwrap();
    let before = lab.log.all().len();
    host.mount().set(Some(Fault::Hang));
    let mut writers = Vec::new();
    for n in 1..=9u8 {
        let file = file.clone();
        // All to the same sector: the last one must win.
        writers.push(host.hang(move || file.write_all_at(&[n; 512], 512)));
    }
    let path = host.path("other");
    let opener = host.hang(move || open(&path).map(drop));
    let path = host.path("disk");
    let looker = host.hang(move || fs::metadata(path).map(|m| m.len()));
    assert_eq!(lab.log.all().len(), before, "nothing lands while it hangs");
    assert!(!lab.backing("other").exists());

    host.mount().set(None);
    let landed: Vec<u8> = lab.log.all()[before..].iter().map(|w| w.data[0]).collect();
    assert_eq!(landed, (1..=9).collect::<Vec<u8>>());
    assert_eq!(fs::read(lab.backing("disk")).unwrap()[512..1024], [9; 512]);
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    opener.join().unwrap().unwrap();
    assert_eq!(looker.join().unwrap().unwrap(), 4096);
}

#[test]
fn a_hung_mount_holds_up_no_other() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let (one, two) = (lab.host("host-1"), lab.host("host-2"));
    let hung = Arc::new(one.open("disk"));
    // Writes that make a file longer wait for each other in the host's kernel.
    hung.write_all_at(&[0; 512], 0).unwrap();
    one.mount().set(Some(Fault::Hang));
    let writers: Vec<_> = (0..50)
        .map(|_| {
            let hung = hung.clone();
            one.start(move || hung.write_all_at(&[1; 512], 0))
        })
        .collect();
    comes_true("all hang", || one.mount().waiting().0 == 50);
    let other = two.open("disk");
    for _ in 0..100 {
        other.write_all_at(&[2; 512], 0).unwrap();
    }
    assert_eq!(lab.log.all().len(), 101);
    one.mount().set(None);
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
}

#[test]
fn a_device_that_is_gone_fails_at_once_with_its_error() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = Arc::new(host.open("disk"));
    file.write_all_at(&[7; 512], 0).unwrap();
    for errno in [Errno::ENXIO, Errno::EIO, Errno::ESTALE, Errno::ENODEV] {
        host.mount().set(Some(Fault::Hang));
        let waiting = file.clone();
        let waiting = host.hang(move || waiting.write_all_at(&[8; 512], 0));
        host.mount().set(Some(Fault::Gone(errno)));
        assert_eq!(
            number(waiting.join().unwrap()),
            errno as i32,
            "it hung before"
        );
        let (path, at) = (host.path("disk"), host.at.clone());
        assert_eq!(number(file.write_at(&[8; 512], 0)), errno as i32);
        assert_eq!(number(file.read_at(&mut [0; 512], 0)), errno as i32);
        assert_eq!(number(file.sync_all()), errno as i32);
        assert_eq!(number(host.run(|| fs::metadata(&path))), errno as i32);
        assert_eq!(number(host.run(|| open(&path))), errno as i32);
        assert_eq!(number(host.run(|| fs::read_dir(&at))), errno as i32);
        host.mount().set(None);
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [7; 512]);
    }
}

#[test]
fn a_slow_path_delays_each_operation_once_and_all_side_by_side() {
    if skipped() {
        return;
    }
    let by = Duration::from_millis(400);
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = Arc::new(host.open_made("disk"));
    file.write_all_at(&[0; 512 * 100], 0).unwrap();
    host.mount().set(Some(Fault::Slow(by)));
    let start = Instant::now();
    let writers: Vec<_> = (0..100u64)
        .map(|n| {
            let file = file.clone();
            std::thread::spawn(move || {
                let start = Instant::now();
                file.write_all_at(&[1; 512], n * 512).unwrap();
                start.elapsed()
            })
        })
        .collect();
    for writer in writers {
        assert!(writer.join().unwrap() >= by);
    }
    // One after the other they would take 40 s.
    assert!(start.elapsed() < 10 * by, "{:?}", start.elapsed());

    // What waits goes on at once when the path is healed.
    host.mount()
        .set(Some(Fault::Slow(Duration::from_secs(3600))));
    let late = file.clone();
    let late = host.hang(move || late.write_all_at(&[2; 512], 0));
    host.mount().set(None);
    late.join().unwrap().unwrap();
}

#[test]
fn storage_that_fences_without_locks_refuses_what_lay_in_a_queue() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let unlocked = |name: &str| {
        let spec = MountSpec {
            image_locks: false,
            ..lab.spec(name)
        };
        lab.host_by(&spec)
    };
    let (old, new) = (unlocked("host-1"), unlocked("host-2"));
    for (path, refused) in [("disk", true), (".mainstay/record", false)] {
        let _ = fs::create_dir(lab.backing(".mainstay"));
        let file = Arc::new(old.open(path));
        file.write_all_at(&[1; 512], 0).unwrap();
        old.mount().set(Some(Fault::Hang));
        let queued = file.clone();
        let queued = old.hang(move || queued.write_all_at(&[2; 512], 0));
        let taken_over = new.open(path);
        taken_over.write_all_at(&[3; 512], 0).unwrap();
        old.mount().set(None);
        assert_eq!(queued.join().unwrap().is_err(), refused, "{path}");
        let last = lab.log.all().pop().unwrap().data[0];
        assert_eq!(last, if refused { 3 } else { 2 }, "{path}");
        old.open(path).write_all_at(&[4; 512], 0).unwrap();
        let late = taken_over.write_all_at(&[5; 512], 0);
        assert_eq!(late.is_err(), refused, "{path}: it opened before");
    }
}

#[test]
fn a_slow_path_keeps_the_order_of_writes() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = Arc::new(host.open_made("disk"));
    file.write_all_at(&[0; 512], 0).unwrap();
    host.mount()
        .set(Some(Fault::Slow(Duration::from_millis(300))));
    let writers: Vec<_> = (1..=20u8)
        .map(|n| {
            let file = file.clone();
            host.hang(move || file.write_all_at(&[n; 512], 0))
        })
        .collect();
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    let landed: Vec<u8> = lab.log.all().iter().map(|w| w.data[0]).collect();
    assert_eq!(landed, (0..=20).collect::<Vec<u8>>());
}

#[test]
fn a_lost_acknowledgement_comes_after_the_effect_and_only_when_healed() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = Arc::new(host.open("disk"));
    file.write_all_at(&[0; 512], 0).unwrap();
    drop(host.open("lock"));
    host.mount().set(Some(Fault::LoseAcks));
    let lost = file.clone();
    let lost = host.hang(move || lost.write_all_at(&[5; 512], 0));
    assert_eq!(host.mount().waiting(), (0, 1));
    assert_eq!(fs::read(lab.backing("disk")).unwrap(), [5; 512]);
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [5; 512], "reads are answered");
    let (from, to) = (host.path("lock"), host.path("link"));
    let link = host.hang(move || fs::hard_link(from, to));
    assert!(lab.backing("link").exists());
    host.mount().set(None);
    lost.join().unwrap().unwrap();
    link.join().unwrap().unwrap();
    assert_eq!(lab.log.all().len(), 2);
}

#[test]
fn a_read_only_datastore_refuses_changes_and_gives_reads() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = host.open("disk");
    file.write_all_at(&[5; 512], 0).unwrap();
    host.mount().set(Some(Fault::ReadOnly));
    let path = |name| host.path(name);
    let (disk, new) = (path("disk"), path("new"));
    let refused: [(&str, io::Result<()>); 8] = host.run(|| {
        [
            ("write", file.write_all_at(&[6; 512], 0)),
            ("open to write", open(&disk).map(drop)),
            ("create", fs::write(&new, "")),
            ("link", fs::hard_link(&disk, &new)),
            ("rename", fs::rename(&disk, &new)),
            ("remove", fs::remove_file(&disk)),
            ("make a directory", fs::create_dir(&new)),
            ("truncate", file.set_len(0)),
        ]
    });
    for (what, result) in refused {
        assert_eq!(number(result), Errno::EROFS as i32, "{what}");
    }
    assert_eq!(host.run(|| fs::read(&disk)).unwrap(), [5; 512]);
    host.mount().set(None);
    host.run(|| fs::rename(&disk, &new)).unwrap();
}

#[test]
fn a_full_datastore_overwrites_and_refuses_what_needs_space() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let file = host.open("disk");
    file.write_all_at(&[5; 8192], 0).unwrap();
    file.set_len(1 << 20).unwrap();
    host.mount().set(Some(Fault::Full));
    let (disk, new) = (host.path("disk"), host.path("new"));
    file.write_all_at(&[6; 4096], 4096).unwrap();
    let refused: [(&str, io::Result<()>); 5] = host.run(|| {
        [
            ("write into a hole", file.write_all_at(&[7; 512], 1 << 19)),
            (
                "write beyond the end",
                file.write_all_at(&[7; 512], 1 << 20),
            ),
            ("create", fs::write(&new, "")),
            ("make a directory", fs::create_dir(&new)),
            ("link", fs::hard_link(&disk, &new)),
        ]
    });
    for (what, result) in refused {
        assert_eq!(number(result), Errno::ENOSPC as i32, "{what}");
    }
    let at = host.at.clone();
    let free = host.run(|| nix::sys::statvfs::statvfs(&at)).unwrap();
    assert_eq!(free.blocks_available(), 0);
    assert_eq!(host.run(|| fs::read(&disk)).unwrap()[4096..8192], [6; 4096]);
    host.run(|| fs::rename(&disk, &new)).unwrap();
    host.run(|| fs::remove_file(&new)).unwrap();
    host.mount().set(None);
    file.write_all_at(&[7; 512], 1 << 19).unwrap();
}

#[test]
fn opens_of_a_file_fail_as_often_as_asked() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host("host-1");
    let (disk, other) = (host.path("vm-1/disk"), host.path("other"));
    host.run(|| fs::create_dir(host.path("vm-1"))).unwrap();
    drop(host.open("vm-1/disk"));
    let twice = Arc::new(AtomicU64::new(2));
    host.mount().fail_opens("vm-1".as_ref(), twice);
    host.run(|| {
        assert!(open(&other).is_ok());
        assert_eq!(number(open(&disk)), Errno::EIO as i32);
        assert_eq!(number(open(&disk)), Errno::EIO as i32);
        assert!(open(&disk).is_ok());
    });
}

#[test]
fn large_files_take_direct_writes_of_either_alignment() {
    if skipped() {
        return;
    }
    let lab = Lab::new();
    let mut spec = lab.spec("host-1");
    spec.write_through = true;
    let (one, two) = (lab.host_by(&spec), lab.host("host-2"));
    let file = one.open("lun");
    file.set_len(64 << 20).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 1 << 20).unwrap();
    for (size, offset) in [(512, 512), (4096, 12288), (1 << 20, 32 << 20)] {
        let bytes = vec![3; size];
        file.write_all_at(&bytes, offset).unwrap();
        let mut found = vec![0; size];
        two.open("lun").read_exact_at(&mut found, offset).unwrap();
        assert_eq!(found, bytes);
    }
    file.sync_all().unwrap();
    let space = nix::sys::stat::fstat(&file).unwrap();
    assert_eq!(space.st_size, 64 << 20);
    assert!(space.st_blocks * 512 < 16 << 20, "it stays sparse");
}
