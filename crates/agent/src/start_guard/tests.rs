//! Each answer, on a real datastore and a guard's real table.

use super::*;
use mainstay_core::guard::Word;
use mainstay_core::id::{BootId, DatastoreId, HostId, InstanceId, Nonce};
use mainstay_core::time::{Duration, Instant};
use mainstay_core::wire::Stamp;
use mainstay_datastore::FileDatastore;

const BOOT: &str = "00000000-0000-0007-0000-000000000000";
const CLUSTER: &str = r#"
cluster_id = "00000000000000aa"
[[datastore]]
id = "ds-1"
[[host]]
id = "host-1"
cpu_mhz = 1000
memory_mb = 1000
networks = { mgmt0 = "127.0.0.1:7777" }
[[host]]
id = "host-2"
cpu_mhz = 1000
memory_mb = 1000
networks = { mgmt0 = "127.0.0.2:7777" }
[[vm]]
id = "vm-1"
datastore = "ds-1"
cpu_mhz = 100
memory_mb = 64
image = "one,1.raw"
"#;
const AGENT: &str = r#"
host = "host-1"
cluster = "cluster.toml"
state_dir = "state"
run_dir = "run"
log_dir = "log"
key_file = "key"
ca_file = "ca.pem"
cert_file = "cert.pem"
cert_key_file = "cert.key"
boot_id_file = "boot_id"
datastores = { ds-1 = "ds-1" }
"#;

struct Scene {
    dir: tempfile::TempDir,
    store: Datastore,
    head: u64,
}

fn vm() -> VmId {
    VmId::new("vm-1").expect("id")
}

fn holder(host: &str, boot: u64) -> Holder {
    Holder {
        host: HostId::new(host).expect("id"),
        boot: BootId(boot),
    }
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("cluster.toml"), CLUSTER).expect("written");
        std::fs::write(at("agent.toml"), AGENT).expect("written");
        std::fs::write(at("boot_id"), BOOT).expect("written");
        for made in ["ds-1", "run", "state"] {
            std::fs::create_dir(at(made)).expect("made");
        }
        let file = ClusterFile::read(&at("cluster.toml")).expect("sound");
        let cluster = file.cluster_config().expect("sound");
        let (ds, host) = (
            DatastoreId::new("ds-1").expect("id"),
            HostId::new("host-1").expect("id"),
        );
        FileDatastore::create(&at("ds-1"), &cluster, &ds, &host).expect("made");
        std::fs::write(at("ds-1/one,1.raw"), "").expect("an image");
        let store = FileDatastore::open(&at("ds-1"), cluster.cluster_id, &ds, &host);
        let store = Datastore::from(store.expect("open"));
        let keys = store.perform(&StorageRequest::ListVmLock(vm()));
        let StorageOutcome::Ok(StorageValue::Keys(keys)) = keys else {
            panic!("{keys:?}");
        };
        let generations = keys.into_iter().map(|key| match key {
            RecordKey::VmLock(_, generation) => generation.0,
            other => panic!("{other:?}"),
        });
        let head = generations.max().expect("its lock was made");
        Self { dir, store, head }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The lock's next generation.
    fn swap(&mut self, holder: Option<Holder>, desired: Desired) -> Generation {
        self.head += 1;
        let stamp = Stamp {
            writer: HostId::new("host-1").expect("id"),
            boot: BootId(7),
            instance: InstanceId(1),
            seq: 1,
        };
        let record = LockRecord {
            generation: Generation(self.head),
            nonce: Nonce(self.head),
            holder,
            desired,
            freeze: Duration::from_secs(3),
            r#break: Duration::from_secs(5),
            given_back: None,
        };
        let bytes = record.encode(0xaa, &stamp);
        let key = RecordKey::VmLock(vm(), record.generation);
        let linked = self.store.perform(&StorageRequest::Link(key, bytes));
        assert_eq!(linked, StorageOutcome::Ok(StorageValue::Done));
        record.generation
    }

    /// A guard's table that has the VM.
    fn register(&self, generation: Generation, deadline: Instant) -> Shm {
        let shm = Shm::create(&shm_path(&self.at("run")), BOOT, 1).expect("made");
        let word = Word::new(SlotState::Running, generation, deadline);
        assert!(shm.occupy(0, &vm(), generation, word));
        shm
    }

    fn ask(&self) -> Option<Refusal> {
        let start = Start {
            names: vec!["vm-1".into()],
            words: vec![],
        };
        let answers = ask(&self.at("agent.toml"), &start).expect("asked");
        assert_eq!(answers.len(), 1);
        answers.into_iter().next().and_then(|a| a.refused)
    }

    fn why(&self) -> String {
        let refusal = self.ask().expect("refused");
        assert!(!refusal.remedy.is_empty());
        refusal.why
    }
}

fn later() -> Instant {
    clock::now() + Duration::from_secs(60)
}

#[test]
fn a_vm_that_another_host_holds_is_refused_with_its_name_and_generation() {
    let mut scene = Scene::new();
    let generation = scene.swap(Some(holder("host-2", 9)), Desired::On);
    let why = scene.why();
    assert!(
        why.contains("host-2") && why.contains(&generation.to_string()),
        "{why}"
    );
}

#[test]
fn a_vm_that_nobody_holds_is_left_to_the_cluster() {
    let mut scene = Scene::new();
    assert!(scene.why().contains("switched off"), "as it was made");
    scene.swap(None, Desired::On);
    assert!(scene.why().contains("about to restart"));
}

#[test]
fn the_holder_may_start_it_once_and_only_under_its_guard() {
    let mut scene = Scene::new();
    let generation = scene.swap(Some(holder("host-1", 7)), Desired::On);
    assert!(
        scene.why().contains("no guard"),
        "a start by hand, past the agent"
    );
    let shm = scene.register(generation, later());
    assert_eq!(scene.ask(), None, "as the driver does");
    let me = crate::twin::own_process().expect("this process");
    shm.bind(0, &me);
    assert!(scene.why().contains("runs on this host already"));
    scene.register(generation, clock::now());
    assert!(scene.why().contains("lapsed"));
    scene.register(Generation(generation.0 - 1), later());
    assert!(scene.why().contains("lapsed"), "of a generation before");
}

#[test]
fn a_lock_of_an_earlier_boot_and_one_that_cannot_be_read_are_refused() {
    let mut scene = Scene::new();
    scene.swap(Some(holder("host-1", 6)), Desired::On);
    assert!(scene.why().contains("earlier boot"));
    let key = RecordKey::VmLock(vm(), Generation(scene.head));
    let path = scene
        .at("ds-1/.mainstay/00000000000000aa")
        .join(key.file_name());
    std::fs::write(path, "nonsense").expect("written");
    assert!(scene.why().contains("cannot be read"));
    std::fs::remove_dir_all(scene.at("ds-1/.mainstay")).expect("removed");
    assert!(scene.why().contains("cannot be read"));
}

#[test]
fn a_vm_is_found_by_its_image_however_that_is_named() {
    let scene = Scene::new();
    let image = scene.at("ds-1/one,1.raw");
    let image = image.display();
    std::os::unix::fs::symlink(scene.at("ds-1"), scene.at("link")).expect("linked");
    let link = scene.at("link/one,1.raw");
    let found = |words: &[String]| {
        let start = Start {
            names: vec![],
            words: words.to_vec(),
        };
        let answers = ask(&scene.at("agent.toml"), &start).expect("asked");
        answers.into_iter().map(|a| a.vm).collect::<Vec<_>>()
    };
    let comma = image.to_string().replace(',', ",,");
    for word in [
        image.to_string(),
        format!("file={comma},format=raw,if=none"),
        format!("if=none,file={comma}"),
        link.display().to_string(),
    ] {
        let words = ["qemu-system-x86_64".to_owned(), "-drive".to_owned(), word];
        assert_eq!(found(&words), [vm()], "{words:?}");
    }
    let other = scene.at("ds-1/other.raw").display().to_string();
    assert_eq!(found(&[format!("file={other}"), "-m".into()]), []);
    let start = Start {
        names: vec!["someone-else's".into()],
        words: vec![],
    };
    let none = ask(&scene.at("agent.toml"), &start).expect("asked");
    assert_eq!(none, [], "not Mainstay's");
}
