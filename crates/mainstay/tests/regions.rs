//! `mainstay datastore format`, `inspect`, `check` and `repair`, as an administrator meets them.

mod kit;

use kit::{Files, text};
use mainstay_core::id::{BootId, DatastoreId, HostId, InstanceId};
use mainstay_core::io::{StorageOutcome, StorageRequest, StorageValue};
use mainstay_core::time::Duration;
use mainstay_core::wire::{HeartbeatRecord, RecordKey, Stamp};
use mainstay_datastore::{BlockDatastore, Here};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

const CLUSTER: u64 = 0xaa;

struct Admin {
    home: tempfile::TempDir,
}

impl Admin {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("dir");
        let files = Files {
            datastores: &[
                ("ds-1", "kind = \"block\"", "region"),
                ("ds-2", "", "mount"),
            ],
            vm: Some("driver = \"embedded\""),
            // A machine that is busy with other tests writes slowly.
            cluster: "[settings]\nprofile = \"classic\"\n",
            agent: "",
        };
        files.write(home.path());
        std::fs::write(home.path().join("region"), "").expect("written");
        Self { home }
    }

    fn region(&self) -> PathBuf {
        self.home.path().join("region")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mainstay"))
            .env_remove("MAINSTAY_SOCKET")
            .stdin(Stdio::null())
            .arg("datastore")
            .args(arguments)
            .arg("--config")
            .arg(self.home.path().join("agent.toml"))
            .output()
            .expect("mainstay runs")
    }

    fn format(&self, more: &[&str]) -> Output {
        let small = ["format", "ds-1", "--hosts", "4", "--vms", "8"];
        self.run(&[&small, more].concat())
    }

    fn damage(&self, offset: u64) {
        let file = std::fs::File::options()
            .write(true)
            .open(self.region())
            .expect("there");
        file.write_all_at(&[0x55; 8], offset + 40).expect("written");
    }
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

#[test]
fn a_region_is_made_shown_checked_and_mended() {
    let admin = Admin::new();
    let error = refused(&admin.run(&["format", "ds-2"]));
    assert!(error.contains("ds-2 is of kind file"), "{error}");
    let made = good(&admin.format(&[]));
    assert!(made.contains("MiB for 4 hosts and 8 VMs"), "{made}");
    let shown = good(&admin.run(&["inspect", "ds-1"]));
    assert!(shown.contains("host-1"), "{shown}");
    assert!(shown.contains("vm-1: generation 0"), "{shown}");
    let added = good(&admin.run(&["add", "ds-1"]));
    assert!(added.contains("nothing on it is missing"), "{added}");
    good(&admin.run(&["check", "ds-1"]));
    admin.damage(0);
    let found = admin.run(&["check", "ds-1"]);
    assert!(text(&found.stdout).contains("can be mended: the head"));
    assert!(refused(&found).contains("datastore repair"));
    let error = refused(&admin.run(&["add", "ds-1"]));
    assert!(error.contains("damaged"), "{error}");
    let mended = good(&admin.run(&["repair", "ds-1"]));
    assert!(mended.contains("mended: the head"), "{mended}");
    good(&admin.run(&["check", "ds-1"]));
    good(&admin.run(&["add", "ds-1"]));
}

#[test]
fn a_check_tells_how_long_a_heartbeat_takes_and_changes_no_record() {
    let admin = Admin::new();
    good(&admin.format(&[]));
    let before = std::fs::read(admin.region()).expect("region");
    let found = good(&admin.run(&["check", "ds-1"]));
    let told = "8 writes like a heartbeat, the slowest took";
    assert!(found.contains(told), "{found}");
    let json = good(&admin.run(&["check", "ds-1", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["renewals"], &json["mended"]),
        (&8.into(), &false.into())
    );
    assert!(json["slowest_renewal_us"].as_u64().is_some_and(|us| us > 0));
    let after = std::fs::read(admin.region()).expect("region");
    let differ = (0..before.len()).filter(|at| before[*at] != after[*at]);
    let places: std::collections::BTreeSet<usize> = differ.map(|at| at / 4096).collect();
    assert_eq!(places.into_iter().collect::<Vec<_>>(), [31], "124 KiB");
    let repaired = good(&admin.run(&["repair", "ds-1"]));
    assert!(!repaired.contains(told), "{repaired}");
    // A path that names the region of another datastore.
    let agent = admin.home.path().join("agent.toml");
    let swapped = std::fs::read_to_string(&agent).expect("readable");
    std::fs::write(&agent, swapped.replace("ds-1 =", "ds-3 =")).expect("written");
    let cluster = admin.home.path().join("cluster.toml");
    let swapped = std::fs::read_to_string(&cluster).expect("readable");
    std::fs::write(&cluster, swapped.replace("\"ds-1\"", "\"ds-3\"")).expect("written");
    let error = refused(&admin.run(&["check", "ds-3"]));
    assert!(error.contains("is that of ds-1, not of ds-3"), "{error}");
}

#[test]
fn what_lies_there_is_named_and_overwritten_only_by_force() {
    let admin = Admin::new();
    let mut data = vec![0; 8192];
    data[1080..1082].copy_from_slice(b"\x53\xef");
    std::fs::write(admin.region(), data).expect("written");
    let error = refused(&admin.format(&[]));
    assert!(error.contains("ext4"), "{error}");
    good(&admin.format(&["--force"]));
    let error = refused(&admin.format(&[]));
    assert!(error.contains("of this cluster"), "{error}");
    good(&admin.format(&["--force"]));
}

#[test]
fn a_mount_is_checked_and_what_breaks_a_promise_is_a_failure() {
    let admin = Admin::new();
    let error = refused(&admin.run(&["check", "ds-2"]));
    assert!(error.contains("the mount point"), "{error}");
    std::fs::create_dir(admin.home.path().join("mount")).expect("made");
    let error = refused(&admin.run(&["check", "ds-2"]));
    assert!(error.contains("mainstay datastore add"), "{error}");
    good(&admin.run(&["add", "ds-2"]));
    let names = || {
        let records = admin.home.path().join("mount/.mainstay/00000000000000aa");
        let listed = std::fs::read_dir(records).expect("listed");
        listed
            .flatten()
            .map(|e| e.file_name())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    // Tests run on a file system of this host, whichever it is.
    let found = admin.run(&["check", "ds-2"]);
    let said = text(&found.stdout);
    assert!(
        said.contains("8 writes like a heartbeat, the slowest took"),
        "{said}"
    );
    assert!(
        said.contains("breaks: ") && said.contains("a file system of one host"),
        "{said}"
    );
    let error = refused(&found);
    assert!(error.contains("docs/datastores.md"), "{error}");
    let json = admin.run(&["check", "ds-2", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["renewals"], 8);
    assert_eq!(json["advice"][0]["weight"], "breaks");
    assert_eq!(names(), before, "nothing is left of it");
}

fn open(region: &Path, run_dir: &Path) -> BlockDatastore {
    let here = Here {
        host: HostId::new("host-1").expect("id"),
        boot: BootId(7),
        run_dir: run_dir.into(),
    };
    let id = DatastoreId::new("ds-1").expect("id");
    BlockDatastore::open(region, CLUSTER, &id, &here).expect("open")
}

#[test]
fn a_region_that_a_host_uses_is_not_overwritten_by_force() {
    let admin = Admin::new();
    good(&admin.format(&[]));
    let store = open(&admin.region(), admin.home.path());
    let done = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seq = 0;
            while !done.load(Ordering::SeqCst) {
                seq += 1;
                let stamp = Stamp {
                    writer: HostId::new("host-1").expect("id"),
                    boot: BootId(7),
                    instance: InstanceId(1),
                    seq,
                };
                let record = HeartbeatRecord {
                    freeze: Duration::from_secs(20),
                    r#break: Duration::from_secs(30),
                };
                let key = RecordKey::Heartbeat(stamp.writer.clone());
                let renew = StorageRequest::Renew(key, record.encode(CLUSTER, &stamp));
                let outcome = store.perform(&renew);
                assert_eq!(outcome, StorageOutcome::Ok(StorageValue::Done));
            }
        });
        let output = admin.format(&["--force"]);
        done.store(true, Ordering::SeqCst);
        refused(&output)
    });
    assert!(
        error.contains("a host writes its heartbeat there"),
        "{error}"
    );
    good(&admin.run(&["check", "ds-1"]));
}
