// Is a distribution over backends even? Pearson's chi-square test with its exact p-value.
import Glibc
import Testing

enum ChiSquare {
  /// Below that a distribution is not believed to be even: by chance once in a million tests.
  static let significance = 1e-6

  /// The probability that an even distribution looks as uneven as these counts, or more.
  static func evenness(of counts: [Int]) -> (statistic: Double, probability: Double) {
    let expected = Double(counts.reduce(0, +)) / Double(counts.count)
    let statistic = counts.reduce(0) { $0 + (Double($1) - expected) * (Double($1) - expected) / expected }
    return (statistic, survival(statistic, degreesOfFreedom: counts.count - 1))
  }

  /// P(X > x) of the chi-square distribution: the regularized upper incomplete gamma function Q(k/2, x/2).
  static func survival(_ x: Double, degreesOfFreedom: Int) -> Double {
    guard x > 0 else { return 1 }
    let (a, z) = (Double(degreesOfFreedom) / 2, x / 2)
    let front = exp(a * log(z) - z - lgamma(a))
    // Each converges quickly on its side of a + 1 (Numerical Recipes, 6.2).
    return z < a + 1 ? 1 - front * lowerSeries(a, z) : front * upperFraction(a, z)
  }

  private static func lowerSeries(_ a: Double, _ z: Double) -> Double {
    var (term, sum, denominator) = (1 / a, 1 / a, a)
    repeat {
      denominator += 1
      term *= z / denominator
      sum += term
    } while term > sum * 1e-15
    return sum
  }

  /// Lentz's evaluation of the continued fraction.
  private static func upperFraction(_ a: Double, _ z: Double) -> Double {
    let tiny = 1e-300
    var b = z + 1 - a
    var (c, d) = (1 / tiny, 1 / b)
    var value = d
    for step in 1...10_000 {
      let factor = -Double(step) * (Double(step) - a)
      b += 2
      d = 1 / nonzero(factor * d + b, tiny)
      c = nonzero(b + factor / c, tiny)
      value *= d * c
      if abs(d * c - 1) < 1e-15 { break }
    }
    return value
  }

  private static func nonzero(_ value: Double, _ tiny: Double) -> Double { abs(value) < tiny ? tiny : value }
}

@Suite("The chi-square test")
struct ChiSquareTests {
  @Test(
    "knows the textbook's critical values",
    arguments: [
      (3.841459, 1, 0.05), (9.487729, 4, 0.05), (16.918978, 9, 0.05), (23.928127, 1, 1e-6), (0.103, 2, 0.949804),
      (10.827566, 1, 0.001), (124.342113, 100, 0.05),
    ])
  func survival(x: Double, degreesOfFreedom: Int, probability: Double) {
    let found = ChiSquare.survival(x, degreesOfFreedom: degreesOfFreedom)
    #expect(abs(found / probability - 1) < 1e-4, "\(found)")
  }

  @Test("believes chance and no slight preference")
  func judges() {
    #expect(ChiSquare.evenness(of: [4021, 3950, 4066, 3981, 3982]).probability > 0.1)
    // A backend that is picked 22 instead of 20 times in a hundred.
    #expect(ChiSquare.evenness(of: [4400, 3900, 3900, 3900, 3900]).probability < ChiSquare.significance)
    #expect(ChiSquare.evenness(of: [5000, 5000, 5000, 5000, 0]).probability < ChiSquare.significance)
  }
}
