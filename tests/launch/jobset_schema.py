"""What launch/gke may say in a manifest: schemas that refuse any other field.

Written by hand from the API references of JobSet v1alpha2, Kueue v1beta1 and Kubernetes
1.33, for the fields in use.
"""

STRING = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
NAME = {
    "type": "string",
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 63,
}
STRINGS = {"type": "object", "additionalProperties": STRING}


def record(required: dict, optional: dict | None = None) -> dict:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema: dict) -> dict:
    """A list that is not empty."""
    return {"type": "array", "items": schema, "minItems": 1}


CHIPS = {
    "type": "object",
    "propertyNames": {"enum": ["google.com/tpu", "nvidia.com/gpu"]},
    "additionalProperties": COUNT,
    "minProperties": 1,
}
ENV = {
    "oneOf": [
        record({"name": STRING, "value": STRING}),
        record(
            {
                "name": STRING,
                "valueFrom": record({"fieldRef": record({"fieldPath": STRING})}),
            }
        ),
    ]
}
VOLUME = {
    "oneOf": [
        record(
            {"name": NAME, "persistentVolumeClaim": record({"claimName": NAME})},
        ),
        record({"name": NAME, "emptyDir": record({"medium": {"const": "Memory"}})}),
    ]
}
POD = record(
    {
        "restartPolicy": {"const": "Never"},
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": COUNT,
        "nodeSelector": STRINGS,
        "containers": items(
            record(
                {
                    "name": NAME,
                    "image": STRING,
                    "env": items(ENV),
                    "args": items(STRING),
                    "ports": items(record({"containerPort": COUNT})),
                    "resources": record({"requests": CHIPS, "limits": CHIPS}),
                    "volumeMounts": items(record({"name": NAME, "mountPath": STRING})),
                }
            )
        ),
        "volumes": items(VOLUME),
    }
)
JOB = record(
    {
        "completionMode": {"enum": ["Indexed", "NonIndexed"]},
        "parallelism": COUNT,
        "completions": COUNT,
        "backoffLimit": {"type": "integer", "minimum": 0},
        "podFailurePolicy": record(
            {
                "rules": items(
                    record(
                        {
                            "action": {"enum": ["FailJob", "Ignore", "Count"]},
                            "onExitCodes": record(
                                {
                                    "containerName": NAME,
                                    "operator": {"enum": ["In", "NotIn"]},
                                    "values": items({"type": "integer"}),
                                }
                            ),
                        }
                    )
                )
            }
        ),
        "template": record({"spec": POD}),
    }
)
JOBSET = record(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": record(
            {"name": NAME, "namespace": NAME, "labels": STRINGS},
            {"annotations": STRINGS},
        ),
        "spec": record(
            {
                "network": record(
                    {
                        "enableDNSHostnames": {"type": "boolean"},
                        "publishNotReadyAddresses": {"type": "boolean"},
                    }
                ),
                "failurePolicy": record(
                    {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": items(
                            record(
                                {
                                    "name": STRING,
                                    "action": {
                                        "enum": [
                                            "FailJobSet",
                                            "RestartJobSet",
                                            "RestartJobSetAndIgnoreMaxRestarts",
                                        ]
                                    },
                                    "onJobFailureReasons": items(
                                        {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "FailedIndexes",
                                                "MaxFailedIndexesExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        }
                                    ),
                                }
                            )
                        ),
                    }
                ),
                "replicatedJobs": items(
                    record(
                        {
                            "name": NAME,
                            "replicas": COUNT,
                            "template": record({"spec": JOB}),
                        }
                    )
                ),
            }
        ),
    }
)
_KUEUE = {"apiVersion": {"const": "kueue.x-k8s.io/v1beta1"}}
_RBAC = {"apiVersion": {"const": "rbac.authorization.k8s.io/v1"}}
_HERE = {"metadata": record({"name": NAME, "namespace": NAME})}
OTHERS = {
    "ResourceFlavor": record(
        _KUEUE
        | {"kind": {"const": "ResourceFlavor"}, "metadata": record({"name": NAME})}
    ),
    "ClusterQueue": record(
        _KUEUE
        | {
            "kind": {"const": "ClusterQueue"},
            "metadata": record({"name": NAME}),
            "spec": record(
                {
                    "namespaceSelector": {"type": "object"},
                    "queueingStrategy": {"enum": ["StrictFIFO", "BestEffortFIFO"]},
                    "resourceGroups": items(
                        record(
                            {
                                "coveredResources": items(STRING),
                                "flavors": items(
                                    record(
                                        {
                                            "name": NAME,
                                            "resources": items(
                                                record(
                                                    {
                                                        "name": STRING,
                                                        "nominalQuota": COUNT,
                                                    }
                                                )
                                            ),
                                        }
                                    )
                                ),
                            }
                        )
                    ),
                }
            ),
        }
    ),
    "LocalQueue": record(
        _KUEUE
        | _HERE
        | {"kind": {"const": "LocalQueue"}, "spec": record({"clusterQueue": NAME})}
    ),
    "ServiceAccount": record(
        _HERE | {"apiVersion": {"const": "v1"}, "kind": {"const": "ServiceAccount"}}
    ),
    "Role": record(
        _RBAC
        | _HERE
        | {
            "kind": {"const": "Role"},
            "rules": items(
                record(
                    {
                        "apiGroups": items({"type": "string"}),
                        "resources": items(STRING),
                        "verbs": items({"enum": ["get", "list", "watch"]}),
                    }
                )
            ),
        }
    ),
    "RoleBinding": record(
        _RBAC
        | _HERE
        | {
            "kind": {"const": "RoleBinding"},
            "roleRef": record({"apiGroup": STRING, "kind": STRING, "name": NAME}),
            "subjects": items(
                record({"kind": STRING, "name": NAME, "namespace": NAME})
            ),
        }
    ),
}
