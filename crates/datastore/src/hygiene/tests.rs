use super::*;

const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
40 22 0:45 / /mnt/nfs rw,relatime shared:7 - nfs4 server:/export rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,retrans=2,sec=sys,local_lock=none,lookupcache=none,addr=10.0.0.1
41 22 0:46 / /mnt/with\\040space rw,relatime - nfs server:/old ro,vers=3,soft,nolock,proto=udp,local_lock=all,acdirmax=120,nocto,fsc
42 40 0:47 / /mnt/nfs/inner rw - cifs //server/share rw,nobrl,cache=loose,soft
43 22 0:48 / /mnt/nfs rw,relatime - ceph 10.0.0.1:/ rw,acl
a line that is none
";

fn texts(path: &str, enforced: bool) -> Vec<(Weight, String)> {
    let mount = mount_of(MOUNTS, Path::new(path)).expect("a mount");
    let judged = judge(&mount, enforced);
    judged.into_iter().map(|a| (a.weight, a.text)).collect()
}

fn nfs(options: &str) -> Vec<Advice> {
    let line = format!("40 22 0:45 / /mnt rw - nfs4 server:/export rw,vers=4.2,hard,{options}");
    judge(
        &mount_of(&line, Path::new("/mnt/x")).expect("a mount"),
        true,
    )
}

#[test]
fn a_path_lies_on_the_deepest_mount_and_of_two_on_the_last() {
    let of = |path: &str| mount_of(MOUNTS, Path::new(path)).expect("a mount").fs_type;
    assert_eq!(of("/home"), "ext4");
    assert_eq!(of("/mnt/nfs/vms"), "ceph");
    assert_eq!(of("/mnt/nfs/inner/vms"), "cifs");
    assert_eq!(of("/mnt/nfsx"), "ext4", "a name is no prefix of another");
    let spaced = mount_of(MOUNTS, Path::new("/mnt/with space/x")).expect("a mount");
    assert_eq!(
        (spaced.fs_type.as_str(), spaced.source.as_str()),
        ("nfs", "server:/old")
    );
    assert_eq!(mount_of("", Path::new("/")), None);
}

#[test]
fn a_sound_nfs_mount_gives_nothing_to_say() {
    assert_eq!(nfs("proto=tcp,local_lock=none,lookupcache=none"), []);
    assert_eq!(nfs("proto=tcp,local_lock=none,noac"), []);
    assert_eq!(
        nfs("proto=tcp,local_lock=flock,lookupcache=pos"),
        [],
        "QEMU takes no flock"
    );
    assert_eq!(
        nfs("nolock,lookupcache=none"),
        [],
        "version 4 has locks of its own"
    );
}

#[test]
fn each_option_that_breaks_a_promise_is_named_with_its_remedy() {
    let found = texts("/mnt/with space", true);
    for (option, remedy) in [
        ("read-only (ro)", "mount it rw"),
        ("nolock:", "mount without it"),
        ("soft:", "mount with hard"),
        ("nocto:", "mount with cto"),
        ("proto=udp:", "proto=tcp"),
    ] {
        let one = found.iter().find(|(_, text)| text.contains(option));
        let (weight, text) = one.unwrap_or_else(|| panic!("{option}: {found:?}"));
        assert_eq!(*weight, Weight::Breaks, "{text}");
        assert!(text.contains(remedy), "{text}");
    }
    for (option, remedy) in [
        ("vers=3:", "vers=4.1"),
        ("for up to 120 s (acdirmax)", "lookupcache=none"),
        ("fsc:", "mount without it"),
    ] {
        let one = found.iter().find(|(_, text)| text.contains(option));
        let (weight, text) = one.unwrap_or_else(|| panic!("{option}: {found:?}"));
        assert_eq!(*weight, Weight::Weakens, "{text}");
        assert!(text.contains(remedy), "{text}");
    }
    assert_eq!(found.len(), 8, "{found:?}");
}

#[test]
fn locks_of_one_host_alone_are_no_lie_where_nobody_counts_on_them() {
    for options in ["local_lock=all,noac", "local_lock=posix,noac"] {
        let found = nfs(options);
        assert_eq!(
            found.first().map(|a| a.weight),
            Some(Weight::Breaks),
            "{options}"
        );
    }
    let open = texts("/mnt/with space", false);
    let locks = open.iter().find(|(_, text)| text.contains("nolock:"));
    assert_eq!(locks.map(|(weight, _)| *weight), Some(Weight::Weakens));
}

#[test]
fn other_file_systems_are_judged_too() {
    let cifs = texts("/mnt/nfs/inner", true);
    assert_eq!(cifs.len(), 3, "{cifs:?}");
    assert!(cifs.iter().all(|(weight, _)| *weight == Weight::Breaks));
    let local = texts("/home", true);
    assert!(
        local[0].1.contains("a file system of one host"),
        "{local:?}"
    );
    assert_eq!(texts("/mnt/nfs", true), [], "CephFS");
}

#[test]
fn renewals_are_held_against_what_the_profile_leaves() {
    let ms = Duration::from_millis;
    let judged = |worst| {
        let took = [ms(1), ms(worst), ms(2)];
        judge_renewals(&took, ms(1200), ms(200)).map(|a| a.weight)
    };
    assert_eq!(judged(499), None);
    assert_eq!(judged(500), Some(Weight::Weakens));
    assert_eq!(judged(1000), Some(Weight::Breaks));
    assert_eq!(judge_renewals(&[], ms(1), ms(2)), None);
    let said = judge_renewals(&[ms(700)], ms(1200), ms(200))
        .expect("too near")
        .text;
    assert!(
        said.contains("700 ms") && said.contains("leaves 1000 ms"),
        "{said}"
    );
}
