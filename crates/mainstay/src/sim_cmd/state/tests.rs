//! What is kept comes back; what belongs elsewhere is refused with the remedy.

use super::*;

fn origin() -> Origin {
    Origin {
        version: "1.2.3".into(),
        build: "abc".into(),
        options: "--seeds 1..9".into(),
    }
}

fn kept(folder: &Path) -> StateFile {
    let file = StateFile::new(&folder.join("state.json"), origin());
    let mut tally = Tally::default();
    tally.done.insert(3);
    tally.virtual_ms = 77;
    file.save(&tally, 1234).expect("written");
    file
}

#[test]
fn progress_comes_back() {
    let folder = tempfile::tempdir().expect("folder");
    let file = kept(folder.path());
    let (tally, wall_ms) = file.load().expect("its own");
    assert!(tally.done.has(3));
    assert_eq!((tally.virtual_ms, wall_ms), (77, 1234));
    let others = fs::read_dir(folder.path()).expect("folder").count();
    assert_eq!(others, 1, "nothing is left beside it");
}

#[test]
fn no_file_is_a_beginning() {
    let folder = tempfile::tempdir().expect("folder");
    let file = StateFile::new(&folder.path().join("none"), origin());
    assert_eq!(file.load().expect("nothing yet"), (Tally::default(), 0));
}

#[test]
fn another_version_build_or_option_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().expect("folder");
    let path = kept(folder.path()).path;
    let mut others = [
        ("version", origin()),
        ("build", origin()),
        ("options", origin()),
    ];
    others[0].1.version = "1.2.4".into();
    others[1].1.build = "abd".into();
    others[2].1.options = "--seeds 1..10".into();
    for (what, other) in others {
        let error = StateFile::new(&path, other).load().expect_err(what);
        let text = error.to_string();
        assert!(
            text.contains(what) && text.contains("remove the file"),
            "{text}"
        );
    }
}

#[test]
fn a_damaged_file_or_another_format_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let file = kept(folder.path());
    let text = fs::read_to_string(&file.path).expect("written");
    fs::write(&file.path, text.replace("\"format\":1", "\"format\":2")).expect("written");
    let error = file.load().expect_err("another format").to_string();
    assert!(error.contains("format \"2\""), "{error}");
    fs::write(&file.path, &text[..text.len() / 2]).expect("written");
    let error = file.load().expect_err("half a file").to_string();
    assert!(error.contains("not a campaign's state"), "{error}");
}

#[test]
fn the_same_program_has_the_same_build() {
    let one = Origin::here(String::new()).expect("readable");
    assert_eq!(one, Origin::here(String::new()).expect("readable"));
    assert_eq!(one.build.len(), 16);
}
