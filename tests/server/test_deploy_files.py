"""deploy/: options, routes and times in the container file and the Kubernetes manifests are those of the server. None of them is run here."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import Engine
from lynx_rt.cli.main import build_parser
from lynx_rt.integrations.placement import POLICIES
from lynx_rt.server.app import make_app
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
MANIFESTS = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / "lynx_rt.yaml").read_text())}
RAY_SERVICE = yaml.safe_load((DEPLOY / "ray" / "rayservice.yaml").read_text())


def serve_options() -> Any:
    return build_parser().parse_args(["serve", "x"]).parser


def pod() -> dict[str, Any]:
    return MANIFESTS["Deployment"]["spec"]["template"]["spec"]


def routes() -> set[str]:
    return set(make_app(ServerState(Settings(model="x", served_model_names=("x",)))).openapi()["paths"])


def test_the_dockerfile_names_options_that_exist() -> None:
    names = {action.dest.upper() for action in serve_options()._actions}
    variables = re.findall(r"LYNX_RT_SERVE_([A-Z_]+)=(\S+)", DOCKERFILE)
    assert dict(variables) == {"HOST": "0.0.0.0", "PORT": "8000"} and {name for name, _ in variables} <= names
    assert 'ENTRYPOINT ["lynx-rt", "serve"]' in DOCKERFILE
    assert set(re.findall(r"127\.0\.0\.1:8000(/\w+)", DOCKERFILE)) == {"/health"} <= routes()


def test_the_last_stage_is_small_and_has_no_root() -> None:
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert "apt-get" not in last and "g++" not in last and "COPY . " not in last
    assert re.search(r"^USER 10001:10001$", last, re.M) and last.index("USER") < last.index("ENTRYPOINT")
    assert DOCKERFILE.count("\nFROM ") == 2 and all(
        "-slim" in line for line in re.findall(r"^FROM .*", DOCKERFILE, re.M)
    )
    extras = re.findall(r"\[([\w,]+)\]\"", DOCKERFILE)
    text = (ROOT / "pyproject.toml").read_text()
    assert extras and all(re.search(rf"^{extra} = \[", text, re.M) for one in extras for extra in one.split(","))


def test_the_pods_arguments_are_options() -> None:
    [container] = pod()["containers"]
    parsed = build_parser().parse_args(["serve", *container["args"]])
    assert parsed.max_num_seqs == 32 and parsed.selection == "lynx"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    folder, _, key = parsed.api_key_file.rpartition("/")
    volume = next(volume for volume in pod()["volumes"] if volume["name"] == mounts[folder])
    assert (
        volume["secret"]["secretName"] == MANIFESTS["Secret"]["metadata"]["name"]
        and key in MANIFESTS["Secret"]["stringData"]
    )
    # Folders that the read-only root cannot hold: the cache of the image, and temporary files.
    assert {"/cache", "/tmp"} <= set(mounts) and {volume["name"] for volume in pod()["volumes"]} == set(mounts.values())


def test_the_pod_ends_after_its_streams() -> None:
    [container] = pod()["containers"]
    parsed = build_parser().parse_args(["serve", *container["args"]])
    [command, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and pod()["terminationGracePeriodSeconds"] > int(seconds) + parsed.shutdown_timeout + 5
    assert MANIFESTS["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_probes_ports_and_rights() -> None:
    [container] = pod()["containers"]
    port = container["ports"][0]
    assert str(port["containerPort"]) in re.findall(r"EXPOSE (\d+)", DOCKERFILE)
    for name, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
        assert container[name]["httpGet"] == {"path": path, "port": port["name"]} and path in routes()
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] >= 600
    service = MANIFESTS["Service"]["spec"]
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert service["ports"][0]["targetPort"] == port["name"]
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"]["drop"] == ["ALL"] and pod()["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod()['securityContext']['runAsUser']} " in DOCKERFILE
    assert container["resources"]["requests"] == container["resources"]["limits"]
    annotations = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in routes() and annotations["prometheus.io/port"] == str(
        port["containerPort"]
    )


def test_the_ray_service_calls_build_app_as_it_is() -> None:
    spec = RAY_SERVICE["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    [application] = config["applications"]
    module, name = application["import_path"].split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in functions and len(functions[name].args.args) == 1, "Serve calls it with args"
    known = {argument.arg for argument in functions["build_app"].args.kwonlyargs} | {"model"}
    args = application["args"]
    assert set(args) <= known and args["policy"] in POLICIES
    assert set(args["engine"]) <= set(Engine.__init__.__annotations__)
    assert set(args["server"]) <= set(Settings.__dataclass_fields__)
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert args["autoscaling"]["max_replicas"] <= group["maxReplicas"]
    [worker] = group["template"]["spec"]["containers"]
    assert int(worker["resources"]["limits"]["cpu"]) >= args["engine"]["num_threads"]
    assert args["model"].startswith(worker["volumeMounts"][0]["mountPath"])
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > args["shutdown_timeout"]
    version = spec["rayClusterConfig"]["rayVersion"]
    assert f'"ray[serve]=={version}"' in (ROOT / "pyproject.toml").read_text() and worker["image"].endswith(version)
