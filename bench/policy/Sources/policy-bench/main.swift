let arguments = CommandLine.arguments.dropFirst()
let namespaces = arguments.first.flatMap { Int($0) } ?? 1000
let parts = arguments.dropFirst().compactMap { Benchmark.Part(rawValue: $0) }
var benchmark = Benchmark(BigCluster(namespaces: max(200, namespaces)))
try benchmark.run(parts.isEmpty ? Benchmark.Part.allCases : parts)
