// swift-tools-version: 6.2
import PackageDescription

// `make check` and CI set this: a warning in our own targets is an error there, and only there, so that a newer
// toolchain never keeps a user from building.
let strict: [SwiftSetting] =
  Context.environment["SLUICE_STRICT"] == "1" ? [.treatAllWarnings(as: .error)] : []

/// Only `scripts/fuzz` can build it: it needs libFuzzer.
let fuzzers: [Target] =
  Context.environment["SLUICE_FUZZ"] == "1"
  ? [
    .executableTarget(
      name: "wire-fuzzer", dependencies: ["ClusterSource", "KubernetesObjects"], path: "Tests/WireFuzzer")
  ]
  : []

/// Targets are listed ground floor first: each may import only what stands above it (see docs/architecture.md).
let package = Package(
  name: "sluice",
  products: [
    .executable(name: "sluice", targets: ["CNIPlugin"]),
    .executable(name: "sluice-agent", targets: ["ProxyAgent"]),
    .executable(name: "dpctl", targets: ["dpctl"]),
    // For labs only: never installed.
    .executable(name: "apiserver-double", targets: ["APIServerProgram"]),
  ],
  dependencies: [
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
    .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
    .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
    .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
  ],
  targets: [
    // C libraries and the few shims
    .target(name: "CLinux"),
    .systemLibrary(name: "CLibMNL", pkgConfig: "libmnl", providers: [.apt(["libmnl-dev"])]),
    .systemLibrary(name: "CLibNFTNL", pkgConfig: "libnftnl", providers: [.apt(["libnftnl-dev"])]),
    .systemLibrary(name: "CLibBPF", pkgConfig: "libbpf", providers: [.apt(["libbpf-dev"])]),

    // free of Foundation
    .target(name: "NetworkTypes", swiftSettings: strict),
    .target(name: "DataplaneModel", dependencies: ["NetworkTypes"], swiftSettings: strict),
    .target(name: "Netlink", dependencies: ["NetworkTypes", "CLinux"], swiftSettings: strict),
    .target(name: "LocalAPI", dependencies: ["NetworkTypes"], swiftSettings: strict),

    .target(name: "PodFilters", dependencies: ["NetworkTypes", "Netlink", "LocalAPI"], swiftSettings: strict),

    // Kubernetes: objects, compilers, sources
    .target(name: "KubernetesObjects", dependencies: ["NetworkTypes"], swiftSettings: strict),
    .target(
      name: "ServiceCompiler", dependencies: ["DataplaneModel", "KubernetesObjects"], swiftSettings: strict),
    .target(
      name: "PolicyCompiler", dependencies: ["DataplaneModel", "KubernetesObjects"], swiftSettings: strict),
    .target(
      name: "ClusterSource",
      dependencies: [
        "KubernetesObjects", "LocalAPI", "CLinux",
        .product(name: "Yams", package: "Yams"),
        .product(name: "AsyncHTTPClient", package: "async-http-client"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
        .product(name: "NIOSSL", package: "swift-nio-ssl"),
      ],
      swiftSettings: strict),

    // engines
    .target(
      name: "NFTables", dependencies: ["DataplaneModel", "Netlink", "CLinux", "CLibMNL", "CLibNFTNL"],
      swiftSettings: strict),

    .plugin(name: "CompileBPF", capability: .buildTool()),
    .target(name: "BPFPrograms", swiftSettings: strict, plugins: ["CompileBPF"]),
    .target(
      name: "BPFLoader", dependencies: ["DataplaneModel", "Netlink", "CLinux", "CLibBPF", "BPFPrograms"],
      swiftSettings: strict),

    // programs
    .executableTarget(
      name: "CNIPlugin", dependencies: ["Netlink", "LocalAPI", "PodFilters", "CLinux"], swiftSettings: strict),
    .executableTarget(
      name: "ProxyAgent",
      dependencies: [
        "NetworkTypes", "DataplaneModel", "Netlink", "LocalAPI", "PodFilters", "KubernetesObjects", "ServiceCompiler",
        "PolicyCompiler", "ClusterSource", "NFTables", "BPFLoader", "CLinux",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Hummingbird", package: "hummingbird"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
      ], swiftSettings: strict),
    .target(
      name: "Lab",
      dependencies: ["NetworkTypes", "Netlink", "LocalAPI", "CLinux", .product(name: "Yams", package: "Yams")],
      swiftSettings: strict),
    .executableTarget(
      name: "dpctl",
      dependencies: [
        "NetworkTypes", "DataplaneModel", "LocalAPI", "Lab", "Netlink", "NFTables", "BPFLoader",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: strict),

    .testTarget(name: "NetworkTypesTests", dependencies: ["NetworkTypes"], swiftSettings: strict),
    .testTarget(name: "DataplaneModelTests", dependencies: ["DataplaneModel"], swiftSettings: strict),
    .testTarget(name: "NetlinkTests", dependencies: ["Netlink", "CLinux"], swiftSettings: strict),
    .testTarget(name: "LocalAPITests", dependencies: ["LocalAPI"], swiftSettings: strict),
    .testTarget(name: "KubernetesObjectsTests", dependencies: ["KubernetesObjects"], swiftSettings: strict),
    // An API server for tests.
    .target(
      name: "APIServerDouble",
      dependencies: [
        "ClusterSource", "KubernetesObjects", "LocalAPI", "NetworkTypes",
        .product(name: "Hummingbird", package: "hummingbird"),
        .product(name: "HummingbirdCore", package: "hummingbird"),
        .product(name: "HummingbirdHTTP2", package: "hummingbird"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOSSL", package: "swift-nio-ssl"),
      ], path: "Tests/APIServerDouble", swiftSettings: strict),
    .executableTarget(
      name: "APIServerProgram",
      dependencies: [
        "APIServerDouble", "LocalAPI", .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], path: "Tests/APIServerProgram", swiftSettings: strict),
    .executableTarget(
      name: "decode-bench", dependencies: ["ClusterSource", "KubernetesObjects", "LocalAPI", "APIServerDouble"],
      path: "bench/decode", sources: ["main.swift"], swiftSettings: strict),
    .testTarget(
      name: "ClusterSourceTests", dependencies: ["ClusterSource", "KubernetesObjects", "APIServerDouble"],
      swiftSettings: strict),
    .testTarget(
      name: "ServiceCompilerTests", dependencies: ["ServiceCompiler", "ClusterSource"], swiftSettings: strict),
    // Random policy worlds and the oracle: for several test targets.
    .target(
      name: "PolicyWorlds", dependencies: ["PolicyCompiler", "ClusterSource"], path: "Tests/PolicyWorlds",
      swiftSettings: strict),
    .testTarget(
      name: "PolicyCompilerTests", dependencies: ["PolicyCompiler", "PolicyWorlds", "ClusterSource"],
      swiftSettings: strict),
    .testTarget(
      name: "NFTablesTests",
      dependencies: [
        "NFTables", "DataplaneModel", "Netlink", "KubernetesObjects", "ServiceCompiler", "PolicyCompiler",
        "PolicyWorlds", "ClusterSource", "LocalAPI",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "BPFLoaderTests",
      dependencies: [
        "BPFLoader", "BPFPrograms", "CLibBPF", "CLinux", "DataplaneModel", "KubernetesObjects", "Lab", "Netlink",
        "NetworkTypes", "PolicyCompiler", "PolicyWorlds",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "ProxyAgentTests",
      dependencies: [
        "ProxyAgent", "LocalAPI", "PolicyCompiler", "KubernetesObjects", "DataplaneModel", "Netlink", "NetworkTypes",
        "NFTables", "BPFLoader", "ClusterSource", .product(name: "Logging", package: "swift-log"),
        .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
      ], swiftSettings: strict),
    .testTarget(
      name: "dpctlTests",
      dependencies: ["dpctl", "LocalAPI", "DataplaneModel", "NetworkTypes", "BPFLoader", "CLinux"],
      swiftSettings: strict),
    // Frames that pods forge, for tests.
    .target(
      name: "RawFrames", dependencies: ["NetworkTypes", "CLinux"], path: "Tests/RawFrames", swiftSettings: strict),
    // Ends plugins amid what they do.
    .executableTarget(name: "call-killer", path: "Tests/CallKiller"),
    .testTarget(
      name: "CNIPluginTests", dependencies: ["LocalAPI", "Netlink", "PodFilters", "RawFrames", "CLinux"],
      swiftSettings: strict),
    .testTarget(
      name: "LabTests",
      dependencies: [
        "Lab", "LocalAPI", "Netlink", "NetworkTypes", "DataplaneModel", "KubernetesObjects", "ClusterSource",
        "PolicyWorlds", "BPFLoader", "CLibBPF", "RawFrames",
      ],
      swiftSettings: strict),
  ] + fuzzers,
  swiftLanguageModes: [.v6]
)
