//! The directories that commands work in: nobody finds there what another left.

use std::fs;
use std::path::PathBuf;

use crate::space::Space;

/// The folders of the store that wait for a later run.
fn idle(space: &Space) -> Vec<PathBuf> {
    let folder = fs::read_dir(space.path(".siteline/tmp/idle"));
    folder.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_directory_that_is_used_again_holds_nothing_of_those_before() {
    let space = Space::of_commands(
        r#"
axes: {seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]}
stages:
  part: {run: "echo ${seed} >out", per: [seed], outputs: [out]}
  look:
    run: |
      list=$(find -L . | sort); echo "$list" >seen/list
      cp inputs/part/out seen/part
      stat -c %a . data inputs seen >seen/modes
      dirname $PWD >seen/place
      touch junk inputs/junk inputs/part/junk data/junk seen/junk
      mkdir -p data/more/deep && echo x >data/more/deep/junk
      ln -s / seen/everything && rm seen/everything
      case ${seed} in
        2) rm -r data ;;
        3) chmod 000 data ;;
        4) rm -r data && ln -s / data ;;
        5) chmod 500 . ;;
        6) chmod 777 data ;;
      esac
    per: [seed]
    needs: {part: part}
    files: [data/table.csv]
    outputs: [seen/]
"#,
    );
    space.write("data/table.csv", "id\n");
    assert_eq!(space.executed(&["-j", "1"]).len(), 40);
    let list = |seed: usize| String::from_utf8(space.output(&format!("look[seed={seed}]"), "seen/list")).unwrap();
    let wanted = "./data\n./data/table.csv\n./inputs\n./inputs/part\n./inputs/part/out\n./seen\n";
    assert_eq!(list(1), format!(".\n{wanted}"));
    let seen = |seed: usize, file: &str| space.output(&format!("look[seed={seed}]"), &format!("seen/{file}"));
    for seed in 2..=20 {
        assert_eq!(list(seed), list(1), "what seed {seed} found");
        assert_eq!(seen(seed, "modes"), seen(1, "modes"), "what seed {seed} may do");
        assert_eq!(space.output(&format!("look[seed={seed}]"), "seen/part"), format!("{seed}\n").as_bytes());
    }
    let places: std::collections::BTreeSet<_> = (1..=20).map(|seed| seen(seed, "place")).collect();
    assert!(places.len() < 20, "no directory was used again");
    assert_eq!(fs::read_dir(space.path("data")).unwrap().count(), 1, "the project was written to");
    assert!(fs::read_dir(space.path(".siteline/tmp")).unwrap().next().is_none(), "something was left");
}

/// A command that puts a link in place of its directory has nothing emptied behind it.
#[test]
fn nothing_is_removed_behind_a_link_in_place_of_a_directory() {
    let space = Space::of_commands(
        "stages:\n  move: {run: \"mv $PWD ${away}; ln -s ${away} $PWD; cd ${away}; echo x >seen/out; touch kept\", with: {away: AWAY}, outputs: [seen/]}\n",
    );
    space.edit("siteline.yaml", "AWAY", space.path("away").to_str().unwrap());
    space.run(&["run", "--plain"]);
    assert!(space.path("away/kept").exists());
    assert!(fs::read_dir(space.path(".siteline/tmp")).unwrap().next().is_none(), "something was left");
}

#[test]
fn a_declared_locale_is_the_commands() {
    let space = Space::of_commands(
        "stages:\n  own: {run: env >out, env: {LANG: C}, outputs: [out]}\n  none: {run: env >out, outputs: [out]}\n",
    );
    space.executed(&[]);
    let of = |stage: &str| String::from_utf8(space.output(stage, "out")).unwrap();
    assert!(of("own").lines().any(|line| line == "LANG=C") && !of("own").contains("LC_"), "{}", of("own"));
    assert!(of("none").lines().any(|line| line == "LC_CTYPE=C.UTF-8"), "{}", of("none"));
}

#[test]
fn a_directory_with_many_folders_waits_for_the_next_run() {
    let space = Space::of_commands(
        r#"
axes: {seed: {from: seeds.txt}}
stages:
  part: {run: "echo ${seed} >out", per: [seed], outputs: [out]}
  table: {run: "find -L inputs -type f >list; cat inputs/parts/*/out >out; touch inputs/junk", needs: {parts: part}, outputs: [out, list]}
"#,
    );
    let seeds = |last: usize| {
        space.write("seeds.txt", (1..=last).map(|seed| format!("{seed}\n")).collect::<String>());
    };
    let lines = |file: &str| String::from_utf8(space.output("table", file)).unwrap().lines().count();
    seeds(70);
    assert_eq!(space.executed(&[]).len(), 71);
    assert_eq!((lines("out"), lines("list")), (70, 70));
    let [folder] = idle(&space)[..].to_vec().try_into().unwrap();
    let parts = || fs::read_dir(folder.join("inputs/parts")).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(parts().count(), 70);
    assert!(parts().all(|part| fs::read_dir(part).unwrap().next().is_none()), "the inputs were not taken away");
    // Whatever comes to lie there, and whatever the sweep is by then, the next command finds what it reads and no more.
    fs::write(folder.join("inputs/parts/stray"), "x").unwrap();
    fs::write(parts().find(|part| part.is_dir()).unwrap().join("stray"), "x").unwrap();
    fs::write(folder.join("out"), "not of this run").unwrap();
    for last in [71, 66] {
        seeds(last);
        assert!(space.executed(&[]).contains("table"));
        assert_eq!((lines("out"), lines("list")), (last, last));
        assert_eq!(parts().count(), last);
    }
    // A run that is killed has it with it; the next one makes its own.
    seeds(72);
    let mut command = space.command(&["run", "--plain"]);
    let killed = command.env("SITELINE_TEST_KILL_AT", "after-stage:2").output().unwrap();
    assert!(!killed.status.success());
    assert!(space.executed(&[]).contains("table"));
    assert_eq!((lines("out"), lines("list")), (72, 72));
    // It is nobody's result.
    let said = space.run(&["gc", "--yes"]);
    assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
    assert!(idle(&space).is_empty());
    assert!(space.executed(&[]).is_empty());
    // However many instances read many, no more than some leave theirs.
    (0..32).for_each(|number| fs::create_dir_all(space.path(&format!(".siteline/tmp/idle/{number}"))).unwrap());
    seeds(73);
    assert!(space.executed(&[]).contains("table"));
    assert_eq!((lines("out"), lines("list"), idle(&space).len()), (73, 73, 32));
}

/// What a command finds is decided by its own declarations, not by how many others read the same.
#[test]
fn inputs_look_alike_however_many_read_them() {
    let space = Space::of_commands(
        r#"
axes: {part: [a, b], reader: [0, 1, 2, 3, 4, 5]}
stages:
  make: {run: "echo ${part} >out; mkdir -p more; echo more >more/x", per: [part], outputs: [out, more/]}
  one: {run: "echo one >out; mkdir -p more; echo more >more/x", outputs: [out, more/]}
  look:
    run: |
      : ${reader}
      find . -path ./seen -prune -o -print | sort >seen/all
      find -L inputs | sort >seen/followed
      find inputs inputs/*/ inputs/*/*/ -printf '%p %y %m %l\n' | sed 's/view[0-9]*$/VIEW/; s/[^ ]*inputs.[a-z]*$/VIEW/' | sort >seen/kinds
    per: [reader]
    needs: {gathered: make, single: one}
    outputs: [seen/]
"#,
    );
    let found = |readers: &str| {
        let _ = fs::remove_dir_all(space.path(".siteline"));
        space.run(&["run", "--quiet", "--set", &format!("axes.reader={readers}")]);
        ["all", "followed", "kinds"]
            .map(|file| String::from_utf8(space.output("look[reader=0]", &format!("seen/{file}"))).unwrap())
    };
    let [all, followed, kinds] = found("[0]");
    assert!(followed.contains("inputs/gathered/part=b/more/x") && followed.contains("inputs/single/out"), "{followed}");
    assert!(kinds.contains("inputs/gathered l") && kinds.contains("inputs/single l"), "{kinds}");
    for readers in ["[0, 1, 2]", "[0, 1, 2, 3]", "[0, 1, 2, 3, 4, 5]"] {
        let [all_now, followed_now, _] = found(readers);
        assert_eq!((all_now, followed_now), (all.clone(), followed.clone()), "with the readers {readers}");
    }
}
