"""One sweep, written for Siteline, ninja, Snakemake and DVC: the same stages, the same shell commands, the same files.

Sites are ingested, their features cached for each backbone, a confounder dictionary made for each backbone, models trained
for each method, backbone, held-out site and seed, each model evaluated on its held-out site, and a table made of all.
"""

import os

SIZES = {  # instances: sites, backbones, methods, seeds
    100: (4, 1, 2, 6),
    1_000: (10, 2, 4, 6),
    10_000: (20, 4, 6, 10),
    100_000: (20, 4, 10, 62),
}


class Sweep:
    def __init__(self, instances):
        sites, backbones, methods, seeds = SIZES[instances]
        self.sites = [f"s{i}" for i in range(sites)]
        self.backbones = [f"b{i}" for i in range(backbones)]
        self.methods = [f"m{i}" for i in range(methods)]
        self.seeds = [str(i) for i in range(seeds)]
        self.points = [
            (m, b, h, s) for m in self.methods for b in self.backbones for h in self.sites for s in self.seeds
        ]
        self.count = len(self.sites) * (1 + len(self.backbones)) + len(self.backbones) + 2 * len(self.points) + 1

    def data(self, folder):
        for kind, lines in [("data", 100), ("labels", 1)]:
            os.makedirs(f"{folder}/{kind}", exist_ok=True)
            for site in self.sites:
                with open(f"{folder}/{kind}/{site}.txt", "w") as file:
                    file.write(f"images of {site}\n" * lines)

    def steps(self):
        """(name, inputs, output, command) of every instance, for tools that want them spelled out."""
        for site in self.sites:
            yield f"ingest-{site}", [f"data/{site}.txt"], f"out/ingest-{site}", f"cat data/{site}.txt > out/ingest-{site}"
        for site in self.sites:
            for backbone in self.backbones:
                out = f"out/features-{site}-{backbone}"
                yield out[4:], [f"out/ingest-{site}"], out, f"cat out/ingest-{site} > {out}; echo {backbone} >> {out}"
        for backbone in self.backbones:
            out = f"out/confounders-{backbone}"
            yield out[4:], [], out, f"echo {backbone} > {out}"
        for method, backbone, held_out, seed in self.points:
            out = f"out/train-{method}-{backbone}-{held_out}-{seed}"
            sources = [f"out/features-{site}-{backbone}" for site in self.sites if site != held_out]
            sources.append(f"out/confounders-{backbone}")
            command = f"cat {' '.join(sources)} > {out}; echo {method} {held_out} {seed} >> {out}"
            yield out[4:], sources, out, command
        for method, backbone, held_out, seed in self.points:
            point = f"{method}-{backbone}-{held_out}-{seed}"
            sources = [f"out/train-{point}", f"out/features-{held_out}-{backbone}", f"labels/{held_out}.txt"]
            yield f"evaluate-{point}", sources, f"out/evaluate-{point}", f"cat {' '.join(sources)} > out/evaluate-{point}"
        scores = [f"out/evaluate-{m}-{b}-{h}-{s}" for m, b, h, s in self.points]
        # All names on one command line would be too long for a shell.
        yield "table", scores, "out/table", "cat out/evaluate-* | cksum > out/table"

    def siteline(self, folder):
        self.data(folder)
        held = ", ".join(self.sites)
        with open(f"{folder}/siteline.yaml", "w") as file:
            file.write(f"""siteline: 1
name: bench
axes:
  hospital: [{held}]
  held_out: [{held}]
  backbone: [{", ".join(self.backbones)}]
  method: [{", ".join(self.methods)}]
  seed: [{", ".join(self.seeds)}]
stages:
  ingest:
    run: cat data/${{hospital}}.txt > out
    per: [hospital]
    files: ["data/${{hospital}}.txt"]
    outputs: [out]
  features:
    run: cat inputs/samples/out > out; echo ${{backbone}} >> out
    per: [hospital, backbone]
    needs: {{samples: ingest}}
    outputs: [out]
  confounders: {{run: "echo ${{backbone}} > out", per: [backbone], outputs: [out]}}
  train:
    run: cat inputs/features/*/out inputs/dictionary/out > out; echo ${{method}} ${{held_out}} ${{seed}} >> out
    per: [method, backbone, held_out, seed]
    needs: {{features: {{stage: features, where: hospital != held_out}}, dictionary: confounders}}
    outputs: [out]
  evaluate:
    run: cat inputs/model/out inputs/features/out labels/${{held_out}}.txt > out
    per: [method, backbone, held_out, seed]
    files: ["labels/${{held_out}}.txt"]
    needs: {{model: train, features: {{stage: features, where: hospital == held_out}}}}
    outputs: [out]
  table: {{run: "cat inputs/scores/*/out | cksum > out", needs: {{scores: evaluate}}, outputs: [out]}}
""")

    def ninja(self, folder):
        self.data(folder)
        os.makedirs(f"{folder}/out", exist_ok=True)
        with open(f"{folder}/build.ninja", "w") as file:
            file.write("rule sh\n  command = $command\n")
            for _, inputs, out, command in self.steps():
                file.write(f"build {out}: sh {' '.join(inputs)}\n  command = {command}\n")
            file.write("default out/table\n")

    def shells(self, folder, jobs):
        """The commands alone, stage by stage, as many at a time: nothing is decided, hashed or kept."""
        self.data(folder)
        os.makedirs(f"{folder}/out", exist_ok=True)
        stages = {}
        for name, _, _, command in self.steps():
            stages.setdefault(name.split("-")[0], []).append(command)
        with open(f"{folder}/run.sh", "w") as script:
            script.write("set -e\n")
            for stage, commands in stages.items():
                with open(f"{folder}/{stage}.commands", "w") as file:
                    file.writelines(f"{command}\n" for command in commands)
                script.write(f"xargs -a {stage}.commands -d '\\n' -n 1 -P {jobs} /bin/sh -c\n")

    def snakemake(self, folder):
        self.data(folder)
        points = "method=METHODS, backbone=BACKBONES, held_out=SITES, seed=SEEDS"
        with open(f"{folder}/Snakefile", "w") as file:
            file.write(f"""SITES = {self.sites!r}
BACKBONES = {self.backbones!r}
METHODS = {self.methods!r}
SEEDS = {self.seeds!r}

wildcard_constraints:
    site="[^-]+", backbone="[^-]+", method="[^-]+", held_out="[^-]+", seed="[^-]+"

rule table:
    input: expand("out/evaluate-{{method}}-{{backbone}}-{{held_out}}-{{seed}}", {points})
    output: "out/table"
    shell: "cat out/evaluate-* | cksum > {{output}}"

rule ingest:
    input: "data/{{site}}.txt"
    output: "out/ingest-{{site}}"
    shell: "cat {{input}} > {{output}}"

rule features:
    input: "out/ingest-{{site}}"
    output: "out/features-{{site}}-{{backbone}}"
    shell: "cat {{input}} > {{output}}; echo {{wildcards.backbone}} >> {{output}}"

rule confounders:
    output: "out/confounders-{{backbone}}"
    shell: "echo {{wildcards.backbone}} > {{output}}"

rule train:
    input:
        lambda w: [f"out/features-{{s}}-{{w.backbone}}" for s in SITES if s != w.held_out],
        "out/confounders-{{backbone}}",
    output: "out/train-{{method}}-{{backbone}}-{{held_out}}-{{seed}}"
    shell: "cat {{input}} > {{output}}; echo {{wildcards.method}} {{wildcards.held_out}} {{wildcards.seed}} >> {{output}}"

rule evaluate:
    input:
        "out/train-{{method}}-{{backbone}}-{{held_out}}-{{seed}}",
        "out/features-{{held_out}}-{{backbone}}",
        "labels/{{held_out}}.txt",
    output: "out/evaluate-{{method}}-{{backbone}}-{{held_out}}-{{seed}}"
    shell: "cat {{input}} > {{output}}"
""")

    def dvc(self, folder):
        self.data(folder)
        os.makedirs(f"{folder}/out", exist_ok=True)
        with open(f"{folder}/dvc.yaml", "w") as file:
            file.write("stages:\n")
            for name, inputs, out, command in self.steps():
                deps = "".join(f"    - {path}\n" for path in inputs)
                deps = f"    deps:\n{deps}" if inputs else ""
                file.write(f"  {name}:\n    cmd: {command}\n{deps}    outs:\n    - {out}\n")
